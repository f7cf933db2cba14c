#include "moments.h"

void moments_add(struct moments *m, double x)
{
    m->n++;
    m->sum += x;
    m->squares += x * x;
}

double moments_mean(const struct moments *m)
{
    return m->sum / m->n;
}

double moments_sd(const struct moments *m)
{
    double mean = moments_mean(m);
    int unused;
    return sqrt((m->squares - m->n * mean * mean) / m->n);
}
