package main

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// parallelTests is how many tests run at once, on any number of processors, because they
// mostly wait for child processes.
const parallelTests = "6"

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
	})
}

// waitFor waits until a file exists, for example one that a background program creates.
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
