/* @ABOUT@ */

#ifndef NET_H
#define NET_H

#include <stdint.h>

@SIZES@

typedef @INPUT@ net_input_t;
typedef @OUTPUT@ net_output_t;

extern const char *const net_classes[NET_OUTPUTS];

/* @MEANING@

   The memory is static: one image at a time, and not from two threads. */

@DECLARE_LOAD@
/* Classify an image of HEIGHT * WIDTH * CHANNELS numbers: writes OUTPUTS numbers. */
void net_run(const net_input_t *image, net_output_t *outputs);

/* The same for an image that comes row by row, as from a camera, so that it need not be kept. Returns 1 with the last
   row, when `outputs` is written, and otherwise 0. The next row begins a new image. */
int net_row(const net_input_t *row, net_output_t *outputs);

/* Forget the rows of an image that is not complete. */
void net_start(void);

#endif
