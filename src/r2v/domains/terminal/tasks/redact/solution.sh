set -e
cat > redact <<'P'
#!/usr/bin/env python3
import re
import sys

EMAIL = re.compile(rb"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![A-Za-z0-9-])")
PART = rb"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
IP = re.compile(rb"(?<!\d)(?<!\d\.)" + rb"\.".join([PART] * 4) + rb"(?!\d)(?!\.\d)")
CARD = re.compile(rb"(?<!\d)(?:\d{16}|\d{4}([ -])\d{4}\1\d{4}\1\d{4})(?!\d)")


def card(match):
    digits = [int(c) for c in match[0].decode() if c.isdigit()]
    doubled = [d if i % 2 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)]
    return b"<card>" if sum(doubled) % 10 == 0 else match[0]


text = sys.stdin.buffer.read()
sys.stdout.buffer.write(CARD.sub(card, IP.sub(b"<ip>", EMAIL.sub(b"<email>", text))))
P
chmod +x redact
./redact < sample.txt | diff - sample.redacted
