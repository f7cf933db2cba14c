cat > rotate.sh <<'S'
cd -- "$1" || exit 1
shopt -s nullglob
n=$2
declare -A seen
for f in *; do
    [ -f "$f" ] && [[ $f =~ ^(.+)--([0-9]{4}-[0-9]{2}-[0-9]{2})\.tar$ ]] && [ ! -e "$f.keep" ] || continue
    printf '%s\t%s\n' "${BASH_REMATCH[2]}" "${BASH_REMATCH[1]}"
done | LC_ALL=C sort -r | while IFS=$'\t' read -r date host; do
    seen[$host]=$((${seen[$host]:-0} + 1))
    if [ "${seen[$host]}" -gt "$n" ]; then
        rm -- "$host--$date.tar"
        printf '%s\n' "$host--$date.tar"
    fi
done | LC_ALL=C sort
S
cp -r backups try && bash rotate.sh try 1 && rm -r try
