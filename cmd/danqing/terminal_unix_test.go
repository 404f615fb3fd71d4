//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// onTerminal runs a program with standard error on a terminal, and answers its question. Usage:
// onterminal ANSWER FILE PROGRAM ARGUMENT..., where FILE is standard input, "tty" for the
// terminal, and ^C is the key. What the program prints on the terminal, and its exit code, are the output.
func onTerminal(ts *testscript.TestScript, neg bool, args []string) {
	master, tty, err := pty.Open()
	ts.Check(err)
	defer master.Close()                      //nolint:errcheck // read until the program has ended
	cmd := exec.Command(args[2], args[3:]...) //nolint:noctx // it ends with its terminal
	cmd.Dir, cmd.Stdin, cmd.Stderr = ts.MkAbs("."), tty, tty
	for _, name := range []string{"PATH", "HOME", "REDIS_URL", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_API_KEY", "AWS_ENDPOINT_URL_S3",
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "DANQING_S3_BUCKET", "DANQING_S3_ADDRESSING", "DANQING_CONFIRM_ABOVE"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	if args[1] != "tty" {
		file, err := os.Open(ts.MkAbs(args[1]))
		ts.Check(err)
		defer file.Close() //nolint:errcheck // read only
		cmd.Stdin = file
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 2}
	ts.Check(cmd.Start())
	ts.Check(tty.Close())
	defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop()
	var screen strings.Builder
	buf := make([]byte, 4096)
	for answered := false; ; {
		n, err := master.Read(buf)
		screen.Write(buf[:n])
		if !answered && strings.Contains(screen.String(), "[y/N] ") {
			answered = true
			keys := args[0] + "\n"
			if args[0] == "^C" {
				keys = "\x03"
			}
			_, err := io.WriteString(master, keys)
			ts.Check(err)
		}
		if err != nil { // the program has ended
			break
		}
	}
	err = cmd.Wait()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if neg != (code != 0) {
		ts.Fatalf("exit code %d:\n%s", code, screen.String())
	}
	_, err = io.WriteString(ts.Stdout(), strings.ReplaceAll(screen.String(), "\r\n", "\n"))
	ts.Check(err)
	_, err = fmt.Fprintf(ts.Stderr(), "exit %d\n", code)
	ts.Check(err)
}
