struct moments { long n; double sum, squares; };

void moments_add(struct moments *m, double x);
double moments_mean(const struct moments *m);
float moments_sd(const struct moments *m);
