/* ------------------------------------------------------------------ arithmetic of int8 */

/* The sums of 4 outputs: products of the same n inputs with 4 rows of weights. */
static void add_4(const int16_t *taps, const int8_t *w, int32_t n, int32_t *sums)
{
    const int8_t *const w1 = w + n, *const w2 = w1 + n, *const w3 = w2 + n;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, i;
    for (i = 0; i < n; i++) {
        const int32_t tap = taps[i];
        s0 += tap * w[i];
        s1 += tap * w1[i];
        s2 += tap * w2[i];
        s3 += tap * w3[i];
    }
    sums[0] += s0;
    sums[1] += s1;
    sums[2] += s2;
    sums[3] += s3;
}

/* Add to each of `many` sums the products of the same n inputs with its row of weights. */
static void add_products(const int16_t *taps, const int8_t *w, int32_t n, int32_t many, int32_t *sums)
{
    int32_t c, i;
    for (c = 0; c + 4 <= many; c += 4)
        add_4(taps, w + c * n, n, sums + c);
    for (; c < many; c++) {
        int32_t sum = 0;
        for (i = 0; i < n; i++)
            sum += (int32_t)taps[i] * w[c * n + i];
        sums[c] += sum;
    }
}

/* The sum times multiplier * 2^(shift - 31), rounded twice, as TensorFlow Lite does it. */
static int32_t scaled(int32_t sum, int32_t multiplier, int8_t shift)
{
    int64_t product = (int64_t)sum * multiplier;
    int32_t high;
    if (shift > 0)
        product *= (int64_t)1 << shift;
    high = (int32_t)((product + ((int64_t)1 << 30)) >> 31);
    if (shift < 0) {
        const int32_t mask = (int32_t)(((uint32_t)1 << -shift) - 1);
        high = (high >> -shift) + ((high & mask) > (mask >> 1) + (high < 0));
    }
    return high;
}

static int8_t output_of(const layer_t *l, int32_t channel, int32_t sum)
{
    const int32_t value = l->out_zero + scaled(sum, NET_MULTIPLIERS[channel], NET_SHIFTS[channel]);
    return (int8_t)(value < l->lowest ? l->lowest : value > 127 ? 127 : value);
}

/* Halves are rounded away from zero. */
static int8_t mean_of(int32_t sum, int32_t many)
{
    return (int8_t)((sum < 0 ? sum - many / 2 : sum + many / 2) / many);
}

/* What is subtracted from inputs, so that what lies outside of the image is 0. */
static int16_t zero_of(const layer_t *l)
{
    return l->in_zero;
}
