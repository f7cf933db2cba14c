set -e
sed -i 's/^OBJECTS = .*/OBJECTS = main.o moments.o/; s/\$(OBJECTS)$/$(OBJECTS) -lm/; s/^    rm/\trm/' Makefile
sed -i 's/^stats: .*/stats: $(OBJECTS)/' Makefile
sed -i 's/^float/double/' moments.h
sed -i 's/%d %.2f/%ld %.2f/' main.c
cat > moments.c <<'C'
#include <math.h>
#include "moments.h"

void moments_add(struct moments *m, double x)
{
    m->n++;
    m->sum += x;
    m->squares += x * x;
}

double moments_mean(const struct moments *m)
{
    return m->n ? m->sum / m->n : 0.0;
}

double moments_sd(const struct moments *m)
{
    double mean = moments_mean(m);
    double spread = m->squares - m->n * mean * mean;
    return m->n > 1 && spread > 0 ? sqrt(spread / (m->n - 1)) : 0.0;
}
C
make clean
make
