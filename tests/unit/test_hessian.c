#include "frames.h"

#include "l7/hessian.h"

/* Whether the bytes are one value, and that is all of them. With each byte less they are none. */
static bool is_value(const void *data, size_t size)
{
    struct bytes bytes = {.size = 0};
    struct hessian hessian;
    uint8_t *copy;
    bool whole;

    append(&bytes, data, size);
    for (size_t less = 0; less < size; less++) {
        copy = beginning(&bytes, less);
        hessian_begin(&hessian, copy, less);
        assert_false(hessian_skip(&hessian));
        free(copy);
    }
    copy = beginning(&bytes, size);
    hessian_begin(&hessian, copy, size);
    whole = hessian_skip(&hessian) && hessian.at == hessian.end;
    free(copy);
    return whole;
}

#define ASSERT_VALUE(constant) assert_true(is_value(constant, sizeof(constant) - 1))
/* Neither is it the beginning of one. */
#define ASSERT_NO_VALUE(constant) assert_false(is_value(constant, sizeof(constant) - 1))

static void test_values_without_others_in_them(void **state)
{
    (void)state;
    ASSERT_VALUE("N");
    ASSERT_VALUE("T");
    ASSERT_VALUE("F");
    ASSERT_VALUE("\x80");
    ASSERT_VALUE("\xbf");
    ASSERT_VALUE("\xc8\x30");
    ASSERT_VALUE("\xd4\x12\x34");
    ASSERT_VALUE("I\x7f\x00\x00\x01");
    ASSERT_VALUE("\xe0");
    ASSERT_VALUE("\xf8\x01");
    ASSERT_VALUE("\x3c\x01\x02");
    ASSERT_VALUE("\x59\x01\x02\x03\x04");
    ASSERT_VALUE("L\x01\x02\x03\x04\x05\x06\x07\x08");
    ASSERT_VALUE("\x5b");
    ASSERT_VALUE("\x5c");
    ASSERT_VALUE("\x5d\x01");
    ASSERT_VALUE("\x5e\x01\x02");
    ASSERT_VALUE("\x5f\x01\x02\x03\x04");
    ASSERT_VALUE("D\x01\x02\x03\x04\x05\x06\x07\x08");
    ASSERT_VALUE("\x4a\x01\x02\x03\x04\x05\x06\x07\x08");
    ASSERT_VALUE("\x4b\x01\x02\x03\x04");
    ASSERT_VALUE("\x51\x90");
    ASSERT_VALUE("\x20");
    ASSERT_VALUE("\x23\x00\x01\x02");
    ASSERT_VALUE("\x34\x02zz");
    ASSERT_VALUE("B\x00\x02zz");
    ASSERT_VALUE("A\x00\x02zz"
                 "A\x00\x00"
                 "\x21z");
    ASSERT_VALUE("\x00");
    ASSERT_VALUE("\x05hello");
    ASSERT_VALUE("\x30\x02hi");
    ASSERT_VALUE("S\x00\x09nine char");
    ASSERT_VALUE("R\x00\x02hiR\x00\x00\x01!");
}

static void test_what_begins_no_value(void **state)
{
    static const uint8_t wrong[] = {'@', 'E', 'G', 'P', 'Z'};

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++)
        assert_false(is_value(&wrong[i], 1));
    ASSERT_NO_VALUE("R\x00\x01z\x20"); /* binary data as a chunk of a string */
    ASSERT_NO_VALUE("A\x00\x01z\x01z");
    ASSERT_NO_VALUE("\x51N"); /* a reference to nothing */
    ASSERT_NO_VALUE("O\x90"); /* an object of a class that is not defined */
    ASSERT_NO_VALUE("\x60");
    ASSERT_NO_VALUE("\x58\x8f");               /* a list of -1 items */
    ASSERT_NO_VALUE("\x58I\x7f\xff\xff\xffN"); /* of more than there are bytes */
    ASSERT_NO_VALUE("V\x91\x95N");
}

/* Lengths count UTF-16 units. Java writes each half of a surrogate pair in three bytes. */
static void test_strings_that_are_not_ascii(void **state)
{
    (void)state;
    ASSERT_VALUE("\x02\xc3\xa4z");
    ASSERT_VALUE("\x01\xe2\x82\xac");
    ASSERT_VALUE("\x02\xed\xa0\xbd\xed\xb8\x80");
    ASSERT_VALUE("\x02\xf0\x9f\x98\x80"); /* UTF-8 proper, as others write it */
    ASSERT_VALUE("\x0a"
                 "12345678\xc3\xa4z");
    ASSERT_VALUE("\x0a\xc3\xa4"
                 "123456789");
    ASSERT_NO_VALUE("\x01\xf0\x9f\x98\x80"); /* half of it */
    ASSERT_NO_VALUE("\x01\x80");
    ASSERT_NO_VALUE("\x01\xbf");
    ASSERT_NO_VALUE("\x01\xc3z");
    ASSERT_NO_VALUE("\x01\xe2\x82z");
    ASSERT_NO_VALUE("\x01\xff\x80\x80\x80");
}

static void test_values_with_others_in_them(void **state)
{
    (void)state;
    ASSERT_VALUE("\x78");
    ASSERT_VALUE("\x7aNT");
    ASSERT_VALUE("\x71\x01[N");
    ASSERT_VALUE("\x71\x90N"); /* a type that was named before */
    ASSERT_VALUE("V\x01[\x92NN");
    ASSERT_VALUE("\x58\x92NN");
    ASSERT_VALUE("\x55\x01[NNZ");
    ASSERT_VALUE("\x57Z");
    ASSERT_VALUE("\x57NNZ");
    ASSERT_VALUE("HZ");
    ASSERT_VALUE("H\x01kNZ");
    ASSERT_VALUE("M\x01tN\x79NZ");
    ASSERT_VALUE("HHZHZZ"); /* a map as a key, and one as its value */
    ASSERT_VALUE("\x58\x90");
    ASSERT_NO_VALUE("HNZ"); /* a key without a value */
    ASSERT_NO_VALUE("\x79Z");
}

static void test_objects(void **state)
{
    (void)state;
    ASSERT_VALUE("C\x01t\x92\x01x\x01y\x60NN");
    ASSERT_VALUE("C\x01t\x92\x01x\x01yO\x90NN");
    ASSERT_VALUE("C\x01t\x90\x60");
    /* Definitions stand before any value, one behind the other too. */
    ASSERT_VALUE("C\x01t\x91\x01x"
                 "C\x01u\x90\x7a\x60\x61\x61");
    ASSERT_VALUE("HC\x01t\x90\x60NZ");
    ASSERT_NO_VALUE("HNC\x01t\x90Z");
    ASSERT_NO_VALUE("HC\x01t\x90Z");
    ASSERT_NO_VALUE("C\x01t\x8fN");
    ASSERT_NO_VALUE("C\x01t\x91\x90N");
    ASSERT_NO_VALUE("C\x01t\x90\x61");
}

/* Definitions are of all that follows in the stream, as of the arguments of one request. */
static void test_a_class_is_known_to_later_values(void **state)
{
    static const uint8_t data[] = "C\x01t\x91\x01x\x60N\x60T";
    struct hessian hessian;

    (void)state;
    hessian_begin(&hessian, data, sizeof data - 1);
    assert_true(hessian_skip(&hessian));
    assert_true(hessian_skip(&hessian));
    assert_ptr_equal(hessian.at, hessian.end);
}

static void test_the_number_of_values_is_bounded(void **state)
{
    size_t size = HESSIAN_VALUES + 1;
    uint8_t *nulls = malloc(size);
    struct hessian hessian;

    (void)state;
    assert_non_null(nulls);
    memset(nulls, 'N', size);
    nulls[0] = 0x57; /* a list that ends with 'Z' */
    nulls[size - 2] = 'Z';
    hessian_begin(&hessian, nulls, size - 1);
    assert_true(hessian_skip(&hessian));
    nulls[size - 2] = 'N';
    nulls[size - 1] = 'Z';
    hessian_begin(&hessian, nulls, size);
    assert_false(hessian_skip(&hessian));
    free(nulls);
}

static void test_the_number_of_classes_is_bounded(void **state)
{
    struct bytes *bytes = no_bytes();
    struct hessian hessian;

    (void)state;
    for (int i = 0; i < HESSIAN_CLASSES; i++)
        APPEND(bytes, "C\x01t\x90");
    APPEND(bytes, "\x60\x60");
    hessian_begin(&hessian, bytes->data, bytes->size);
    assert_true(hessian_skip(&hessian));
    bytes->size--;
    APPEND(bytes, "C\x01t\x90\x60");
    hessian_begin(&hessian, bytes->data, bytes->size);
    assert_true(hessian_skip(&hessian));
    assert_false(hessian_skip(&hessian));
    free(bytes);
}

/* Lists of two in each other, so deep. */
static bool skips_lists(uint32_t depth)
{
    struct bytes *bytes = no_bytes();
    struct hessian hessian;
    bool skipped;

    for (uint32_t i = 0; i < depth; i++)
        APPEND(bytes, "\x7a");
    for (uint32_t i = 0; i < depth + 1; i++)
        APPEND(bytes, "N");
    hessian_begin(&hessian, bytes->data, bytes->size);
    skipped = hessian_skip(&hessian) && hessian.at == hessian.end;
    free(bytes);
    return skipped;
}

static void test_depth_is_bounded(void **state)
{
    (void)state;
    assert_true(skips_lists(HESSIAN_DEPTH));
    assert_false(skips_lists(HESSIAN_DEPTH + 2));
}

/* Each node is the last field of the one before. */
static void test_a_long_linked_list_is_not_deep(void **state)
{
    struct bytes *bytes = no_bytes();
    struct hessian hessian;

    (void)state;
    APPEND(bytes, "C\x01n\x92\x01v\x04next");
    for (int i = 0; i < 50000; i++)
        APPEND(bytes, "\x60\x90");
    APPEND(bytes, "N");
    hessian_begin(&hessian, bytes->data, bytes->size);
    assert_true(hessian_skip(&hessian));
    assert_ptr_equal(hessian.at, hessian.end);
    free(bytes);
}

static bool reads_string(const char *data, size_t size, struct text *text)
{
    struct hessian hessian;

    hessian_begin(&hessian, (const uint8_t *)data, size);
    return hessian_string(&hessian, text) && hessian.at == hessian.end;
}

static void test_strings_are_read(void **state)
{
    struct text text;

    (void)state;
    assert_true(reads_string("\x02hi", 3, &text));
    assert_text(text, "hi");
    assert_true(reads_string("\x30\x02hi", 4, &text));
    assert_text(text, "hi");
    assert_true(reads_string("S\x00\x02hi", 5, &text));
    assert_text(text, "hi");
    assert_true(reads_string("\x00", 1, &text));
    assert_int_equal(text.size, 0);
    assert_non_null(text.at);
    assert_true(reads_string("N", 1, &text));
    assert_int_equal(text.size, 0);
    assert_null(text.at);
    assert_false(reads_string("", 0, &text));
    assert_false(reads_string("\x03hi", 3, &text));
    assert_false(reads_string("\x90", 1, &text));
    assert_false(reads_string("R\x00\x01h\x01i", 6, &text));
}

static int64_t number_in(const char *data, size_t size)
{
    struct hessian hessian;
    int64_t number;

    hessian_begin(&hessian, (const uint8_t *)data, size);
    assert_true(hessian_number(&hessian, &number));
    assert_ptr_equal(hessian.at, hessian.end);
    return number;
}

/* The examples of the specification. */
static void test_numbers_are_read(void **state)
{
    struct hessian hessian;
    int64_t number;

    (void)state;
    assert_int_equal(number_in("\x90", 1), 0);
    assert_int_equal(number_in("\x80", 1), -16);
    assert_int_equal(number_in("\xbf", 1), 47);
    assert_int_equal(number_in("\xc7\x00", 2), -256);
    assert_int_equal(number_in("\xc0\x00", 2), -2048);
    assert_int_equal(number_in("\xcf\xff", 2), 2047);
    assert_int_equal(number_in("\xd0\x00\x00", 3), -262144);
    assert_int_equal(number_in("\xd7\xff\xff", 3), 262143);
    assert_int_equal(number_in("I\xff\xff\xff\xff", 5), -1);
    assert_int_equal(number_in("\xef", 1), 15);
    assert_int_equal(number_in("\xd8", 1), -8);
    assert_int_equal(number_in("\xf0\x00", 2), -2048);
    assert_int_equal(number_in("\x38\x00\x00", 3), -262144);
    assert_int_equal(number_in("\x3f\xff\xff", 3), 262143);
    assert_int_equal(number_in("\x59\x80\x00\x00\x00", 5), INT32_MIN);
    assert_int_equal(number_in("L\x80\x00\x00\x00\x00\x00\x00\x00", 9), INT64_MIN);
    hessian_begin(&hessian, (const uint8_t *)"N", 1);
    assert_false(hessian_number(&hessian, &number));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_without_others_in_them),
        cmocka_unit_test(test_what_begins_no_value),
        cmocka_unit_test(test_strings_that_are_not_ascii),
        cmocka_unit_test(test_values_with_others_in_them),
        cmocka_unit_test(test_objects),
        cmocka_unit_test(test_a_class_is_known_to_later_values),
        cmocka_unit_test(test_the_number_of_classes_is_bounded),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_a_long_linked_list_is_not_deep),
        cmocka_unit_test(test_the_number_of_values_is_bounded),
        cmocka_unit_test(test_strings_are_read),
        cmocka_unit_test(test_numbers_are_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
