static const value_t *converted(const net_input_t *row)
{
    return row;
}
