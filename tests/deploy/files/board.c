/* A Cortex-M board of QEMU: classifies the image of image.h and prints the outputs by semihosting. */
#include "net.h"
#include "image.h"
extern unsigned stack_top, bss_begin, bss_end;
static net_output_t outputs[NET_OUTPUTS];
static int call(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
void start(void)
{
    unsigned *at;
    int i;
    for (at = &bss_begin; at < &bss_end; at++) *at = 0;
    net_run(image, outputs);
    for (i = 0; i < NET_OUTPUTS; i++) {
        char text[8], *t = text + 7;
        int value = outputs[i] < 0 ? -outputs[i] : outputs[i];
        *t = 0; *--t = '\n';
        do *--t = (char)('0' + value % 10); while (value /= 10);
        if (outputs[i] < 0) *--t = '-';
        call(4, t);
    }
    call(0x18, (void *)0x20026);
}
__attribute__((section(".vectors"), used)) static void *const vectors[2] = {&stack_top, (void *)start};
