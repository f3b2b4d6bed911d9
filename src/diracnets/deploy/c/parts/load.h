/* The weights, in a file of their own (little endian), wherever they are: they have to stay there, at an address that
   is a multiple of 4. Returns 0 if they are not those of this network. To be called first. */
int net_load(const void *weights);

