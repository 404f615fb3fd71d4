package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// parallelTests is how many tests run at once, on any number of processors, because they
// mostly wait for child processes.
const parallelTests = "6"

// noExitSleep is for a program with the race detector, which otherwise waits for a second
// before it exits.
const noExitSleep = "GORACE=atexit_sleep_ms=0"

// The test binary is also the program, if it is called by the program's name.
func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", parallelTests) // the command line overrides it
	testscript.Main(m, map[string]func(){"danqing": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true,
		Cmds: scriptCommands(),
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, noExitSleep)
			return nil
		},
	})
}

// waitFor waits until a file exists that a background program creates, or until it has a
// match for a regular expression.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	appeared := func() bool {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return err == nil
	}
	if len(args) > 1 {
		pattern := regexp.MustCompile(args[1])
		appeared = func() bool {
			content, err := os.ReadFile(ts.MkAbs(args[0]))
			return err == nil && pattern.Match(content)
		}
	}
	for deadline := time.Now().Add(3 * time.Minute); ; {
		if appeared() {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s did not appear", strings.Join(args, " with "))
		}
		<-time.After(10 * time.Millisecond)
	}
}
