#!/bin/sh
# Draws docs/img/top.svg: what `nodosum top` shows of a cluster of four that has lost one.
#
#   docs/img/top.sh target/release/nodosum > docs/img/top.svg
#
# The cluster runs on loopback, in a directory of its own that is removed at the end.
set -eu
nodosum=$(realpath "${1:-target/release/nodosum}")
dir=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; rm -rf "$dir"' EXIT INT TERM
cd "$dir"
"$nodosum" tls ca create --cluster shop --out ca >/dev/null 2>&1
seed=
for node in n1 n2 n3 n4; do
    "$nodosum" tls cert create --ca ca --node $node --out $node >/dev/null 2>&1
    # shellcheck disable=SC2086  # two words, or none
    "$nodosum" run --tls-dir $node --bind 127.0.0.1:0 --admin $node.sock --ports-file $node.json \
        --tag role=web $seed 2>/dev/null &
    pids="$pids $!"
    last=$!
    until [ -s $node.json ]; do sleep 0.1; done
    seed=${seed:-"--seed $(sed 's/.*"quic":"\([^"]*\)".*/\1/' n1.json)"}
done
"$nodosum" wait --members 4 --connected 3 --timeout 60s --admin n1.sock
kill -9 $last
for peer in n2 n3; do
    (while "$nodosum" request --to $peer --app echo "$(seq 200)" --admin n1.sock; do :; done) >/dev/null 2>&1 &
    pids="$pids $!"
done
until "$nodosum" members n4 --status dead -o name --admin n1.sock >/dev/null 2>&1; do sleep 0.5; done
"$nodosum" top -b -n 3 -d 1 --color always --admin n1.sock > looks
# The last look, and each colour as a part of a line.
awk -v RS= 'END { print }' looks | sed '/^$/d' | awk '
BEGIN {
    colour[1] = "font-weight=\"bold\""; colour[2] = "fill=\"#8b949e\""; colour[32] = "fill=\"#3fb950\""
    colour[33] = "fill=\"#d29922\""; colour["1;32"] = "fill=\"#3fb950\" font-weight=\"bold\""
    colour["1;31"] = "fill=\"#f85149\" font-weight=\"bold\""
}
{
    gsub(/&/, "\\&amp;"); gsub(/</, "\\&lt;"); gsub(/>/, "\\&gt;")
    plain = $0; gsub(/\033\[[0-9;]*m/, "", plain); if (length(plain) > widest) widest = length(plain)
    line = $0; out = ""
    while (match(line, /\033\[[0-9;]*m/)) {
        code = substr(line, RSTART + 2, RLENGTH - 3)
        out = out substr(line, 1, RSTART - 1) (code == "0" ? "</tspan>" : "<tspan " colour[code] ">")
        line = substr(line, RSTART + RLENGTH)
    }
    text[NR] = out line
}
END {
    width = widest * 8.43 + 32; height = NR * 20 + 28
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" role=\"img\" aria-label=\"nodosum top\">\n", width, height
    print "<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>"
    print "<g font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, monospace\" font-size=\"14\" fill=\"#e6edf3\">"
    for (i = 1; i <= NR; i++)
        printf "<text x=\"16\" y=\"%d\" xml:space=\"preserve\">%s</text>\n", i * 20 + 10, text[i]
    print "</g>\n</svg>"
}'
