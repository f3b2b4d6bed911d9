/* @ABOUT@ */

#include <string.h>

#include "net.h"

@LIMITS@

typedef @VALUE@ value_t;   /* of a map */
typedef @TAP@ tap_t;       /* less its zero point */
typedef @SUM@ sum_t;
typedef @VALUE@ weight_t;

enum { CONV, LINEAR, MAX, AVERAGE };

typedef struct {
    uint16_t kind;
    uint16_t adds_up;                              /* windows do not overlap: each row is used up when it comes */
    uint16_t height, width, channels;              /* of the input */
    uint16_t out_height, out_width, out_channels;  /* of the output */
    uint16_t size_y, size_x;                       /* of the window */
    uint16_t stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, groups;
    uint16_t kept;                                 /* how many input rows are kept */
    uint32_t rows;                                 /* where they are in the memory, in bytes; or what is added up */
    uint32_t out;                                  /* where the output row is, or the map that it belongs to */
    uint32_t weight, channel;                      /* index of the first weight and the first bias */
    int32_t taps;                                  /* inputs of an output, added up at a time */
    int16_t relu, lowest, in_zero, out_zero;       /* the last three for int8: lowest output, zero points */
} layer_t;

/* Layers between which there is no whole map. The map before them is moved to `source`; that after them is at 0. */
typedef struct {
    uint16_t first, last;
    uint32_t source;
} segment_t;
/* All memory that is written to, but for the stack. */
static struct {
    sum_t memory[NET_MEMORY];
    tap_t taps[NET_TAPS];                 /* the inputs of one output */
    uint16_t came[NET_LAYERS];            /* input rows that a layer was given */
    uint16_t made[NET_LAYERS];            /* output rows that it has computed */
} net_state;

typedef char net_ram_is_as_stated[sizeof net_state == NET_RAM ? 1 : -1];

static const layer_t net_layers[NET_LAYERS] = {
@LAYERS@
};

static const segment_t net_segments[NET_SEGMENTS] = {
@CUTS@
};

const char *const net_classes[NET_OUTPUTS] = {
@CLASSES@
};

@WEIGHTS@
@CONVERSION@
@CODE@
