/**
 * Completion by shell. Each script asks `weft __complete` (complete.ts) for what can come next, so it knows every command and option of
 * the weft that is installed, and the peers that are there now.
 */

/** Bash takes `:` and `=` for ends of words: of a MAC it wants only what comes after the last. */
const BASH = `# Completion of weft for bash: weft completion bash > /etc/bash_completion.d/weft
_weft() {
  local line=\${COMP_LINE:0:COMP_POINT} word breaks typed strip=
  local -a words
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=('')
  typed=\${words[\${#words[@]}-1]}
  breaks=\${COMP_WORDBREAKS//[^:=]/}
  [[ -n $breaks && $typed == *[$breaks]* ]] && strip=\${typed%"\${typed##*[$breaks]}"}
  COMPREPLY=()
  while IFS=$'\\t' read -r word _; do
    if [[ $word == :files ]]; then
      compopt -o default 2>/dev/null
    else
      COMPREPLY+=("\${word#"$strip"}")
    fi
  done < <("\${words[0]}" __complete "\${words[@]:1}" 2>/dev/null)
}
complete -F _weft weft
`;

const ZSH = `#compdef weft
# Completion of weft for zsh: weft completion zsh > /usr/local/share/zsh/site-functions/_weft
_weft() {
  local line word meaning
  local -a found
  for line in "\${(@f)$("\${words[1]}" __complete "\${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
    [[ -z $line ]] && continue
    if [[ $line == :files ]]; then
      _files
      continue
    fi
    word=\${line%%$'\\t'*}
    meaning=
    [[ $line == *$'\\t'* ]] && meaning=\${line#*$'\\t'}
    found+=("\${word//:/\\\\:}\${meaning:+:$meaning}")
  done
  (( \${#found} )) && _describe -t weft weft found
}
if [[ \${funcstack[1]} == _weft ]]; then
  _weft "$@"
else
  compdef _weft weft
fi
`;

const FISH = `# Completion of weft for fish: weft completion fish > /etc/fish/completions/weft.fish
function __weft_complete
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] "$typed" 2>/dev/null)
        if test "$line" = ":files"
            __fish_complete_path "$typed"
        else
            echo $line
        end
    end
end
complete -c weft -f -a '(__weft_complete)'
`;

export const SHELLS: Readonly<Record<string, string>> = { bash: BASH, zsh: ZSH, fish: FISH };
