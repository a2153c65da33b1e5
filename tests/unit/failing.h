/* Allocations of the data plane that fail. */
#ifndef UNIT_FAILING_H
#define UNIT_FAILING_H

#include <stdbool.h>

/* The `number`-th allocation from now on fails, counted from 1, and those after it do not; 0: none
 * does. */
void failing_set(unsigned number);
/* Whether it has come to that; and none fails any more. */
bool failing_take(void);

#endif
