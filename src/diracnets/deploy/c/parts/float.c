/* ------------------------------------------------------------------ arithmetic of float */

/* Add to each of `many` sums the products of the same n inputs, a multiple of 4, with its weights. Those of 16 sums lie
   side by side, input by input; so do those of the rest. */
static void add_products(const float *restrict taps, const float *restrict w, int32_t n, int32_t many,
                         float *restrict sums)
{
    int32_t c, i, k;
    for (c = 0; c + 16 <= many; c += 16, w += 16 * n) {
        for (i = 0; i < n; i += 4) {
            const float t0 = taps[i], t1 = taps[i + 1], t2 = taps[i + 2], t3 = taps[i + 3];
            const float *const v = w + 16 * i;
            for (k = 0; k < 16; k++)
                sums[c + k] += (t0 * v[k] + t1 * v[k + 16]) + (t2 * v[k + 32] + t3 * v[k + 48]);
        }
    }
    for (i = 0; i < n; i++)
        for (k = c; k < many; k++)
            sums[k] += taps[i] * *w++;
}

static float output_of(const layer_t *l, int32_t channel, float sum)
{
    (void)channel;
    return l->relu && sum < 0 ? 0 : sum;
}

static float mean_of(float sum, int32_t many)
{
    return sum / (float)many;
}

static float zero_of(const layer_t *l)
{
    (void)l;
    return 0;
}
