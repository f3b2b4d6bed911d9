static const float net_scales[NET_CHANNELS] = {SCALES};
static const float net_offsets[NET_CHANNELS] = {OFFSETS};

static const value_t *converted(const net_input_t *row)
{
    value_t *const out = net_state.memory + PLACE / sizeof(value_t);
    int x, c;
    for (x = 0; x < NET_WIDTH; x++)
        for (c = 0; c < NET_CHANNELS; c++)
            out[x * NET_CHANNELS + c] = row[x * NET_CHANNELS + c] * net_scales[c] + net_offsets[c];
    return out;
}
