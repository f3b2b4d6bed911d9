    {
        static uint32_t weights[(NET_WEIGHTS_SIZE + 3) / 4];
        FILE *file = fopen(WEIGHTS_FILE, "rb");
        if (!file || fread(weights, NET_WEIGHTS_SIZE, 1, file) != 1 || !net_load(weights)) {
            fprintf(stderr, "%s is missing or does not belong to this program\n", WEIGHTS_FILE);
            return 1;
        }
        fclose(file);
    }
