/* What becomes of a pixel, for each channel. */
static const int8_t net_pixels[NET_CHANNELS][256] = {
TABLE
};

static const value_t *converted(const net_input_t *row)
{
    value_t *const out = (value_t *)net_state.memory + PLACE;
    int x, c;
    for (x = 0; x < NET_WIDTH; x++)
        for (c = 0; c < NET_CHANNELS; c++)
            out[x * NET_CHANNELS + c] = net_pixels[c][row[x * NET_CHANNELS + c]];
    return out;
}
