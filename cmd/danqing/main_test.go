package main

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// together is how many tests run at once, whatever the processors: they mostly wait for
// programs that wait for each other.
const together = "6"

// The test binary is the program too, when it is called by its name.
func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", together) // the command line overrides it
	testscript.Main(m, map[string]func(){"danqing": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true,
		Cmds: scriptCommands(),
	})
}

// waitFor waits until a file is there: the signal that a program in the
// background has got so far.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(3 * time.Minute); ; {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s did not appear", args[0])
		}
		<-time.After(10 * time.Millisecond)
	}
}
