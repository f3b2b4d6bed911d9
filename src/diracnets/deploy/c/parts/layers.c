/* ------------------------------------------------------------------ layers, a row at a time */

static value_t *at_offset(uint32_t bytes)
{
    return (value_t *)net_state.memory + bytes / sizeof(value_t);
}

static sum_t *sums_of(const layer_t *l)
{
    return net_state.memory + l->rows / sizeof(sum_t);
}

/* Copy what one output place is computed of, row by row of the window, with 0 outside of the image. */
static void gather(const layer_t *l, const value_t *const *rows, int32_t x, int32_t group, tap_t *taps)
{
    const int32_t each = l->channels / l->groups;
    const int32_t span = l->dilation_x == 1 && l->groups == 1 ? l->size_x : 1; /* columns that lie side by side */
    const tap_t *const end = taps + l->taps, zero = zero_of(l);
    int32_t ky, kx, i;
    for (ky = 0; ky < l->size_y; ky++) {
        for (kx = 0; kx < l->size_x; kx += span) {
            const int32_t column = x * l->stride_x - l->padding_x + kx * l->dilation_x;
            const int32_t from = column < 0 ? (column + span > 0 ? -column : span) : 0;
            const int32_t to = rows[ky] && column < l->width ? (column + span > l->width ? l->width - column : span) : 0;
            const int32_t many = to > from ? (to - from) * each : 0;
            if (many < span * each)
                memset(taps, 0, (size_t)(span * each) * sizeof *taps);
            if (many) {
                const value_t *const in = rows[ky] + ((column + from) * l->channels + group * each);
                tap_t *const out = taps + from * each;
                for (i = 0; i < many; i++)
                    out[i] = (tap_t)(in[i] - zero);
            }
            taps += span * each;
        }
    }
    while (taps < end)
        *taps++ = 0;
}

static void convolve(const layer_t *l, const value_t *const *rows, value_t *out)
{
    const int32_t many = l->out_channels / l->groups;
    int32_t x, group, c, i;
    for (x = 0; x < l->out_width; x++) {
        for (group = 0; group < l->groups; group++) {
            const weight_t *const w = NET_WEIGHTS + l->weight + (uint32_t)(group * many * l->taps);
            gather(l, rows, x, group, net_state.taps);
            for (c = 0; c < many; c += NET_BLOCK) {
                sum_t sums[NET_BLOCK];
                const int32_t block = many - c < NET_BLOCK ? many - c : NET_BLOCK;
                const int32_t channel = (int32_t)l->channel + group * many + c;
                for (i = 0; i < block; i++)
                    sums[i] = NET_BIASES[channel + i];
                add_products(net_state.taps, w + c * l->taps, l->taps, block, sums);
                for (i = 0; i < block; i++)
                    *out++ = output_of(l, channel + i, sums[i]);
            }
        }
    }
}

/* The largest value of each window; `first` if the output has no value of an earlier row. */
static void raise_to(const layer_t *l, const value_t *row, int first, value_t *out)
{
    int32_t x, kx, c;
    for (x = 0; x < l->out_width; x++, out += l->channels) {
        int fresh = first;
        for (kx = 0; kx < l->size_x; kx++) {
            const int32_t column = x * l->stride_x - l->padding_x + kx;
            if (column >= 0 && column < l->width) {
                const value_t *const in = row + column * l->channels;
                if (fresh)
                    memcpy(out, in, l->channels * sizeof *out);
                else
                    for (c = 0; c < l->channels; c++)
                        out[c] = in[c] > out[c] ? in[c] : out[c];
                fresh = 0;
            }
        }
    }
}

/* The mean of each window. */
static void average(const layer_t *l, const value_t *const *rows, value_t *out)
{
    int32_t x, c, kx, ky;
    for (x = 0; x < l->out_width; x++) {
        for (c = 0; c < l->channels; c++) {
            sum_t sum = 0;
            for (ky = 0; ky < l->size_y; ky++)
                for (kx = 0; kx < l->size_x; kx++)
                    sum += rows[ky][(x * l->stride_x + kx) * l->channels + c];
            *out++ = mean_of(sum, l->size_y * l->size_x);
        }
    }
}

/* Row `index` of a layer's input, of those that it needs for its next output; 0 outside of the image. */
static const value_t *input_row(const layer_t *l, int32_t index, int32_t came, const value_t *newest)
{
    if (index < 0 || index >= l->height)
        return 0;
    if (newest && index == came - 1)
        return newest;
    return at_offset(l->rows) + (uint32_t)(index % l->kept) * l->width * l->channels;
}

/* Compute output row `made` of the rows that are kept and the newest one. */
static void compute_row(const layer_t *l, int32_t made, int32_t came, const value_t *newest, value_t *out)
{
    const value_t *rows[NET_TALLEST];
    int32_t ky;
    int first = 1;
    for (ky = 0; ky < l->size_y; ky++)
        rows[ky] = input_row(l, made * l->stride_y - l->padding_y + ky * l->dilation_y, came, newest);
    if (l->kind == CONV)
        convolve(l, rows, out);
    else if (l->kind == AVERAGE)
        average(l, rows, out);
    else
        for (ky = 0; ky < l->size_y; ky++)
            if (rows[ky]) {
                raise_to(l, rows[ky], first, out);
                first = 0;
            }
}

/* Use up input row `index` of a layer whose windows do not overlap. */
static void add_row(const layer_t *l, int32_t index, const value_t *row)
{
    const int32_t line = (index + l->padding_y) % l->stride_y; /* of its window */
    const int first = index == 0 || line == 0;
    sum_t *sums = sums_of(l);
    int32_t x, kx, c;
    if (l->kind == LINEAR) {
        const int32_t many = l->out_channels, n = l->width * l->channels;
        const tap_t zero = zero_of(l);
        if (index == 0)
            for (c = 0; c < many; c++)
                sums[c] = NET_BIASES[l->channel + (uint32_t)c];
        for (c = 0; c < n; c++)
            net_state.taps[c] = (tap_t)(row[c] - zero);
        for (; c < l->taps; c++)
            net_state.taps[c] = 0;
        add_products(net_state.taps, NET_WEIGHTS + l->weight + (uint32_t)(index * many * l->taps), l->taps, many, sums);
    } else if (line >= l->size_y) {
        return; /* between two windows */
    } else if (l->kind == MAX) {
        raise_to(l, row, first, at_offset(l->rows));
    } else {
        if (first)
            memset(sums, 0, (size_t)(l->out_width * l->channels) * sizeof *sums);
        for (x = 0; x < l->out_width; x++, sums += l->channels)
            for (kx = 0; kx < l->size_x; kx++)
                for (c = 0; c < l->channels; c++)
                    sums[c] += row[(x * l->stride_x + kx) * l->channels + c];
    }
}

/* The output row of a layer whose windows do not overlap, when all rows of the window have come. */
static void finish_row(const layer_t *l, value_t *out)
{
    const int32_t many = l->out_width * l->out_channels;
    const sum_t *const sums = sums_of(l);
    int32_t c;
    if (l->kind == MAX) {
        if (out != at_offset(l->rows))
            memcpy(out, at_offset(l->rows), (size_t)many * sizeof *out);
        return;
    }
    for (c = 0; c < many; c++)
        out[c] = l->kind == LINEAR ? output_of(l, (int32_t)l->channel + c, sums[c])
                                   : mean_of(sums[c], l->size_y * l->size_x);
}
