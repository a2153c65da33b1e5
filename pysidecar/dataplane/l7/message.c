#include "l7/message.h"

static bool begins_with(struct text text, struct text beginning)
{
    text.size = text.size < beginning.size ? text.size : beginning.size;
    return text_equal_folded(text, beginning);
}

bool message_binds_connection(const struct message *message, struct text name)
{
    for (uint32_t i = 0; i < message->field_count; i++) {
        const struct field *field = &message->fields[i];

        if (text_equal_folded(field->name, name) && (begins_with(field->value, TEXT("negotiate")) ||
                                                     begins_with(field->value, TEXT("ntlm"))))
            return true;
    }
    return false;
}
