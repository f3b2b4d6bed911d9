/* ------------------------------------------------------------------ rows pass from layer to layer */

static void keep_row(const layer_t *l, int32_t index, const value_t *row)
{
    const uint32_t many = (uint32_t)l->width * l->channels;
    if (l->kept)
        memcpy(at_offset(l->rows) + (uint32_t)(index % l->kept) * many, row, many * sizeof *row);
}

/* Whether the input rows that came are enough for output row `made`. */
static int is_ready(const layer_t *l, int32_t came, int32_t made)
{
    const int32_t last = made * l->stride_y - l->padding_y + l->dilation_y * (l->size_y - 1);
    return made < l->out_height && (came > last || came == l->height);
}

/* Give a row to a layer. It is returned if the layer has still to keep it; 0 if it is used up. */
static const value_t *give_row(int at, const value_t *row)
{
    const int32_t index = net_state.came[at]++;
    if (!net_layers[at].adds_up)
        return row;
    add_row(&net_layers[at], index, row);
    return 0;
}

/* Give a row to layer `first`, and compute all that it makes possible, up to layer `last`. */
static void take_row(int first, int last, const value_t *row, value_t *outputs)
{
    int at = first;
    const value_t *newest = give_row(at, row);
    for (;;) {
        const layer_t *const l = &net_layers[at];
        const int32_t came = net_state.came[at], made = net_state.made[at];
        if (is_ready(l, came, made)) {
            value_t *out = at == NET_LAYERS - 1 ? outputs : at_offset(l->out);
            if (at == last)
                out += (uint32_t)made * l->out_width * l->out_channels;
            if (l->adds_up)
                finish_row(l, out);
            else
                compute_row(l, made, came, newest, out);
            net_state.made[at]++;
            if (newest)
                keep_row(l, came - 1, newest);
            newest = at < last ? give_row(++at, out) : 0;
        } else {
            if (newest)
                keep_row(l, came - 1, newest);
            newest = 0;
            if (at-- == first)
                return;
        }
    }
}

void net_start(void)
{
    memset(net_state.came, 0, sizeof net_state.came);
    memset(net_state.made, 0, sizeof net_state.made);
}

int net_row(const net_input_t *row, net_output_t *outputs)
{
    int s, y;
    take_row(net_segments[0].first, net_segments[0].last, converted(row), outputs);
    if (net_state.came[0] < NET_HEIGHT)
        return 0;
    for (s = 1; s < NET_SEGMENTS; s++) {
        const segment_t *const segment = &net_segments[s];
        const layer_t *const l = &net_layers[segment->first];
        const uint32_t many = (uint32_t)l->width * l->channels;
        value_t *const map = at_offset(segment->source);
        if (segment->source)
            memmove(map, net_state.memory, many * l->height * sizeof(value_t));
        for (y = 0; y < l->height; y++)
            take_row(segment->first, segment->last, map + many * (uint32_t)y, outputs);
    }
    net_start();
    return 1;
}

void net_run(const net_input_t *image, net_output_t *outputs)
{
    int y;
    net_start();
    for (y = 0; y < NET_HEIGHT; y++)
        net_row(image + (uint32_t)y * NET_WIDTH * NET_CHANNELS, outputs);
}
