# Waits until nobody holds the other end of its standard input; then ends its process group, and removes the directory $0
# and the cgroups that are named there. What it prints is what could not be removed.
read -r _
exec setsid sh -c '
  kill -s KILL -- "-$0"
  cat "$1"/*.cgroups 2>/dev/null | while read -r group; do
    # Processes take a moment to end.
    for _ in $(seq 200); do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
      [ -d "$group" ] || break
      sleep 0.05
    done
    [ ! -d "$group" ] || echo "$group is still in use"
  done
  rm -rf -- "$1" || echo "$1 could not be removed"
' $$ "$0"
