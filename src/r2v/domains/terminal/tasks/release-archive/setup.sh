set -e
mkdir -p project/bin project/lib/deep project/cache
printf '#!/bin/sh\necho demo\n' > project/bin/demo
printf 'text\n' > project/README
printf 'old\n' > project/README.bak
printf 'x = 1\n' > project/lib/a.py
printf 'x = 0\n' > project/lib/a.py~
printf 'y = 2\n' > 'project/lib/deep/b c.py'
printf 'junk\n' > project/cache/junk
ln -s lib/a.py project/main.py
chmod 600 project/README project/bin/demo
chmod 777 project/lib/a.py
chmod 700 project/lib/deep
