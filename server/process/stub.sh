# For the bash by which Triton starts each stub (BASH_ENV). A stub inherits the connections that
# tritonserver has with its clients at that moment, and would hold them for as long as it lives.
unset BASH_ENV
for descriptor in /proc/$$/fd/*; do
    number=${descriptor##*/}
    [[ $number -gt 2 && -S $descriptor ]] && eval "exec $number>&-"
done
