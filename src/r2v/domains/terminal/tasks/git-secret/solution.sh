set -e
export FILTER_BRANCH_SQUELCH_WARNING=1
git reset -q --hard
git filter-branch -f --index-filter 'git rm -q --cached --ignore-unmatch deploy/credentials.ini settings/login.ini' \
    --tag-name-filter cat -- --all
git for-each-ref --format='%(refname)' refs/original | while read -r ref; do git update-ref -d "$ref"; done
