static const unsigned char *net_loaded;

int net_load(const void *weights)
{
    uint32_t key;
    memcpy(&key, weights, sizeof key);
    if (key != WEIGHTS_KEY)
        return 0;
    net_loaded = weights;
    return 1;
}

