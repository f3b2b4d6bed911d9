/* Classify image files; or, with - as the only argument, images from standard input, whose outputs go to standard
   output, both as they are in memory. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"

static net_input_t image[NET_HEIGHT * NET_WIDTH * NET_CHANNELS];
static net_output_t logits[NET_OUTPUTS];

/* The next number of a PPM's header, after white space and comments; -1 where there is none. */
static long number(FILE *file)
{
    long value = -1;
    int c = getc(file);
    while (c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF)
                c = getc(file);
        else
            c = getc(file);
    }
    for (; c >= '0' && c <= '9' && value < 100000; c = getc(file))
        value = (value < 0 ? 0 : value) * 10 + (c - '0');
    return value;
}

/* Why the image could not be read; 0 where it was. */
static const char *read_ppm(const char *name)
{
    const char *problem = 0;
    FILE *file = fopen(name, "rb");
    if (!file)
        return "cannot be opened";
    if (getc(file) != 'P' || getc(file) != (NET_CHANNELS == 1 ? '5' : '6'))
        problem = NET_CHANNELS == 1 ? "is no binary PGM (P5)" : "is no binary PPM (P6)";
    else if (number(file) != NET_WIDTH || number(file) != NET_HEIGHT)
        problem = "is of another size than the network takes";
    else if (number(file) != 255)
        problem = "is not of 8 bits a channel";
    else if (fread(image, sizeof image, 1, file) != 1)
        problem = "ends too early";
    fclose(file);
    return problem;
}

int main(int argc, char **argv)
{
    int i, k, status = 0;
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        printf("usage: %s IMAGE.ppm ...   (binary, %d x %d)\n       %s - < raw images > outputs\n", argv[0], NET_WIDTH,
               NET_HEIGHT, argv[0]);
        return argc < 2 ? 2 : 0;
    }
@CALL_LOAD@
    if (argc == 2 && strcmp(argv[1], "-") == 0) {
        while (fread(image, sizeof image, 1, stdin) == 1) {
            net_run(image, logits);
            if (fwrite(logits, sizeof logits, 1, stdout) != 1)
                return 1;
        }
        return fflush(stdout) != 0;
    }
    for (i = 1; i < argc; i++) {
        const char *const problem = read_ppm(argv[i]);
        int best = 0;
        if (problem) {
            fprintf(stderr, "%s %s\n", argv[i], problem);
            status = 1;
            continue;
        }
        net_run(image, logits);
        for (k = 1; k < NET_OUTPUTS; k++)
            if (logits[k] > logits[best])
                best = k;
        printf("%s: %s\n", argv[i], net_classes[best]);
    }
    return status;
}
