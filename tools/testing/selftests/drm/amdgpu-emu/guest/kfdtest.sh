# SPDX-License-Identifier: GPL-2.0
# AMD's kfdtest: each test in a process of its own, so that one that hangs or is killed does not end
# the others. kfdtest=PATTERN on the kernel command line selects tests, as --gtest_filter does.
. /tests/lib.sh

default='KFDSVMRangeTest.*:KFDSVMEvictTest.*'
said=/tmp/kfdtest.out

# Some tests only need long; what matters is that a hang ends.
limit_of() {
	case $1 in
	*.MigrateGranularityTest/*) echo 600 ;;
	*.QueueTest/* | *.MigrateLargeBufTest/*) echo 400 ;;
	*.MultiGPUMigrationTest/*) echo 120 ;;
	*) echo 200 ;;
	esac
}

# The names of the tests that a pattern selects. One that may leave the GPUs busy comes last.
tests_of() {
	kfdtest --gtest_list_tests --gtest_filter="$1" 2>/dev/null | awk '
		/^[A-Za-z].*\.$/ || /^[A-Za-z].*\. / { suite = $1; sub(/^.*\//, "", suite); next }
		/^  / && suite {
			if ($1 ~ /^MultiGPUMigrationTest\/1/)
				last = last suite $1 "\n"
			else
				print suite $1
		}
		END { printf "%s", last }'
}

# Ends what a test left: its children outlive it when it is killed.
end_all() {
	for try in 1 2 3 4 5 6 7 8 9 10; do
		killall -q -9 kfdtest || return 0
		sleep 1
	done
	echo "# processes of the test do not end"
}

# Why the last test failed, or nothing. Its exit status is not enough: a child's failure is only
# printed by some tests, and a test that finds nothing to do passes.
verdict() {
	if [ "$1" = 137 ]; then
		echo "killed after $2 s"
	elif grep -q 'Failure$' $said; then
		sed -n 's/^\(.*\/\)\{0,1\}\([^:]*:[0-9]*\): Failure$/failure at \2/p' $said | head -n 1
	elif grep -qi 'skipping test' $said; then
		grep -i -m 1 'skipping test' $said
	elif [ "$1" != 0 ]; then
		echo "exit status $1"
	elif ! grep -q '^\[  PASSED  \] 1 test\.' $said; then
		echo "it did not say that it passed"
	fi
}

all() {
	names=$(tests_of "$1") number=0 failed=0
	echo "1..$(echo "$names" | wc -w)"
	for name in $names; do
		number=$((number + 1))
		limit=$(($(limit_of "$name") * ${_slow:-1}))
		echo "gpusvm: kfdtest $name begins" >/dev/kmsg
		begin=$(date +%s)
		timeout -s KILL $limit kfdtest --gtest_filter="$name" >$said 2>&1
		code=$?
		took=$(($(date +%s) - begin))
		end_all
		why=$(verdict $code $took)
		if [ -z "$why" ]; then
			echo "ok $number - $name # $took s"
			continue
		fi
		failed=$((failed + 1))
		echo "not ok $number - $name # $took s: $why"
		tail -n 60 $said | sed 's/^/#   /'
	done
	return $failed
}

echo "gpusvm-run: kfdtest"
# The last one of them counts.
pattern=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^kfdtest=//p' | tail -n 1)
all "${pattern:-$default}"
echo "gpusvm-exit: kfdtest $?"
