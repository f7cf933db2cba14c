#include <stdio.h>
#include "moments.h"

int main(void)
{
    struct moments m = {0, 0, 0};
    double x;
    while (scanf("%lf", &x) == 1)
        moments_add(&m, x);
    printf("%d %.2f %.2f\n", m.n, moments_mean(&m), moments_sd(&m));
    return 0;
}
