# Stands before the commands of a page: what is not there in a test, or would not end.
set -o pipefail

_check() { local status=$?; [ $status = 0 ] || exit $status; }

# Those in the background, until all have ended well.
_settle() { local job; for job in $(jobs -p); do wait "$job" || exit; done; }

# A block of Python, in the one session of the page.
_block() {
  if [ -z "${_SESSION:-}" ]; then
    coproc _PYTHON { exec python "$HERE/session.py"; }
    _SESSION=$_PYTHON_PID
    disown "$_SESSION"
  fi
  local answer
  echo "$1" >&"${_PYTHON[1]}" && read -r -u "${_PYTHON[0]}" answer && [ "$answer" = done ]
}

pip() { :; }
git() { [ "$1" != clone ] || mkdir -p "${3:-$(basename "$2" .git)}"; }
_venv() {
  mkdir -p "$1/bin" && touch "$1/bin/activate"
  ln -sf "$BIN/python" "$1/bin/python" && ln -sf "$(type -P true)" "$1/bin/pip"
}
make() { command make -n -C "$ROOT" "$@" > /dev/null && _venv .venv; }
python() {
  case "$1 $2" in
    "-m venv") _venv "$3" ;;
    "-m pip") ;;
    *) command python "$@" ;;
  esac
}
python3() { python "$@"; }
# A player takes what it is given, and TensorBoard what has been logged; neither is there.
aplay() { cat > heard.pcm; }
tensorboard() { local log="$*"; log=${log#*--logdir?}; ls -d "${log/#\~/$HOME}" > /dev/null; }
# To follow a file is to see the end of it when all that writes it is done.
tail() { if [ "$1" = -f ]; then _settle; shift; fi; command tail "$@"; }
