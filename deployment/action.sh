#!/usr/bin/env bash
# What the GitHub Action runs: the command, its report as the summary of the job, and its outputs.
set -uo pipefail

report="$ONNXSLIM_OUTPUT.report.json"
read -r -a more <<< "$ONNXSLIM_ARGS"
onnxslim "$ONNXSLIM_MODEL" "$ONNXSLIM_OUTPUT" --passes "$ONNXSLIM_PASSES" --overwrite \
    --report "$report" --junit "$ONNXSLIM_OUTPUT.junit.xml" ${more[@]+"${more[@]}"}
code=$?
if [ -f "$report" ]; then
    summary=$(mktemp -d)
    onnxslim report "$report" -o "$summary/summary.md" && cat "$summary/summary.md" >> "$GITHUB_STEP_SUMMARY"
    rm -r "$summary"
    echo "report=$report" >> "$GITHUB_OUTPUT"
fi
if [ -f "$ONNXSLIM_OUTPUT" ]; then
    echo "sha256=$(sha256sum "$ONNXSLIM_OUTPUT" | cut -d " " -f 1)" >> "$GITHUB_OUTPUT"
fi
exit "$code"
