set -e
for c in $(git fsck --unreachable --no-reflogs 2>/dev/null | awk '$2 == "commit" { print $3 }'); do
    if [ "$(git log -1 --format=%s "$c")" = "Add the token bucket" ] && git show "$c:bucket.py" | grep -q ValueError; then
        git branch recovered "$c"
    fi
done
