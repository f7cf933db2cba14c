#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry { char word[16]; int count; };

static struct entry table[1000];
static int used;

static void add(const char *word)
{
    for (int i = 0; i <= used; i++)
        if (strcmp(table[i].word, word) == 0) {
            table[i].count++;
            return;
        }
    strcpy(table[used].word, word);
    table[used++].count = 1;
}

static int compare(const void *a, const void *b)
{
    return ((struct entry *)b)->count - ((struct entry *)a)->count;
}

int main(int argc, char **argv)
{
    char word[16], c;
    int length = 0;
    while ((c = getchar()) != EOF) {
        if (isalpha(c))
            word[length++] = tolower(c);
        else if (length) {
            word[length] = 0;
            add(word);
            length = 0;
        }
    }
    qsort(table, used, sizeof table[0], compare);
    for (int i = 0; i < atoi(argv[1]); i++)
        printf("%d %s\n", table[i].count, table[i].word);
    return 0;
}
