set -e
cat > freq.c <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry { char *word; long count; };

static struct entry *table;
static size_t size, used;

static size_t place(const struct entry *in, size_t of, const char *word)
{
    size_t hash = 5381;
    for (const char *c = word; *c; c++)
        hash = hash * 33 + (unsigned char)*c;
    hash &= of - 1;
    while (in[hash].word && strcmp(in[hash].word, word) != 0)
        hash = (hash + 1) & (of - 1);
    return hash;
}

static void grow(void)
{
    size_t next = size ? 2 * size : 1024;
    struct entry *bigger = calloc(next, sizeof *bigger);
    if (!bigger)
        exit(1);
    for (size_t i = 0; i < size; i++)
        if (table[i].word)
            bigger[place(bigger, next, table[i].word)] = table[i];
    free(table);
    table = bigger;
    size = next;
}

static void add(const char *word)
{
    if (2 * used >= size)
        grow();
    struct entry *e = &table[place(table, size, word)];
    if (!e->word) {
        e->word = malloc(strlen(word) + 1);
        if (!e->word)
            exit(1);
        strcpy(e->word, word);
        used++;
    }
    e->count++;
}

static int compare(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? 1 : -1;
    return strcmp(x->word, y->word);
}

int main(int argc, char **argv)
{
    long wanted = argc > 1 ? atol(argv[1]) : 0;
    size_t length = 0, room = 64, n = 0;
    char *word = malloc(room);
    int c;
    if (!word)
        return 1;
    do {
        c = getchar();
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
            if (length + 1 == room && !(word = realloc(word, room *= 2)))
                return 1;
            word[length++] = c <= 'Z' ? c - 'A' + 'a' : c;
        } else if (length) {
            word[length] = 0;
            add(word);
            length = 0;
        }
    } while (c != EOF);
    free(word);
    for (size_t i = 0; i < size; i++)
        if (table[i].word)
            table[n++] = table[i];
    if (n)
        qsort(table, n, sizeof *table, compare);
    for (size_t i = 0; i < n; i++) {
        if ((long)i < wanted)
            printf("%ld %s\n", table[i].count, table[i].word);
        free(table[i].word);
    }
    free(table);
    return 0;
}
C
make check
