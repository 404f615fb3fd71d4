package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

// The documented commands do what their documents say: those of the blocks marked with
// run and background, as printed but for the ports.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	if testing.Short() { // the race detector's run; the plain one has it
		return
	}
	dir := t.TempDir()
	ports := map[string]map[string]string{} // by script
	for _, d := range documents(t) {
		if !slices.ContainsFunc(d.blocks, func(b block) bool { return b.has("run") }) {
			continue
		}
		name := strings.TrimSuffix(strings.ReplaceAll(d.path, "/", "-"), ".md")
		ports[name] = freePorts(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".txtar"), []byte(script(d, ports[name])), 0o600))
	}
	caches, err := exec.CommandContext(t.Context(), "go", "env", "GOCACHE", "GOMODCACHE").Output()
	require.NoError(t, err)
	cache := strings.Fields(string(caches))
	repository, err := filepath.Abs(root)
	require.NoError(t, err)
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfor": waitFor, "listening": waitListening, "released": waitReleased, "output": compareOutput,
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("GOCACHE", cache[0])
			env.Setenv("REPOSITORY", repository)
			env.Setenv("GOMODCACHE", cache[1])
			name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
			env.Setenv("DANQING_LISTEN", "127.0.0.1:"+ports[name]["8765"])
			examples := os.DirFS("examples")
			return os.CopyFS(filepath.Join(env.WorkDir, "cmd", "danqing", "examples"), examples)
		},
	})
}

// documentedPort matches the ports that documents use.
var documentedPort = regexp.MustCompile(`\b(6379|7070|8765|8766|9000)\b`)

// nextPort is below the ports that systems assign by themselves: one of those may be taken by
// another test before the documented program listens.
var nextPort atomic.Int64

// freePorts has a free port for each documented one.
func freePorts(t *testing.T) map[string]string {
	t.Helper()
	nextPort.CompareAndSwap(0, 20_000+int64(os.Getpid()%200)*50)
	ports := map[string]string{}
	for _, port := range []string{"6379", "7070", "8765", "8766", "9000"} {
		for ports[port] == "" {
			free := strconv.FormatInt(nextPort.Add(1), 10)
			listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", free))
			if err == nil {
				ports[port] = free
				require.NoError(t, listener.Close())
			}
		}
	}
	return ports
}

// scriptWriter makes a testscript of a document.
type scriptWriter struct {
	ports    map[string]string
	steps    strings.Builder
	files    strings.Builder
	ours     []string // programs of Danqing's in the background
	programs int
	numbered int
}

func script(d document, ports map[string]string) string {
	w := &scriptWriter{ports: ports}
	w.step("cp cmd/danqing/examples/house.png house.png")
	var receivers []block
	for _, b := range d.blocks {
		if b.has("receiver") {
			receivers = append(receivers, b)
			w.file(b.words["receiver"], b.text)
		}
	}
	for _, b := range d.blocks {
		if needs := b.words["needs"]; needs != "" {
			for program := range strings.SplitSeq(needs, ",") {
				w.step("[!exec:%s] stop '%s is not installed'", program, program)
			}
		}
		switch {
		case b.has("file"):
			w.file(b.words["file"], b.text)
		case b.has("background"):
			for line := range strings.SplitSeq(strings.TrimSpace(b.text), "\n") {
				w.background(line)
			}
		case b.has("receivers"):
			for i, r := range receivers {
				w.receive(i+1, r, b.text)
			}
		case b.has("run"):
			w.step("# %s:%d", d.path, b.line)
			if strings.Contains(b.text, "curl ") {
				w.step("[!exec:curl] stop 'curl is not installed'")
			}
			w.run(b.text)
		case b.has("output"):
			w.step("output %s", w.file("", b.text))
		}
	}
	for _, name := range slices.Backward(w.ours) { // before what they stand on, which the end stops
		w.step("kill -INT %s\nwait %s", name, name)
	}
	return w.steps.String() + w.files.String()
}

func (w *scriptWriter) step(format string, args ...any) {
	fmt.Fprintf(&w.steps, format+"\n", args...)
}

// file adds a file and returns its name.
func (w *scriptWriter) file(name, text string) string {
	if name == "" {
		w.numbered++
		name = fmt.Sprintf("step%d", w.numbered)
	}
	text = documentedPort.ReplaceAllStringFunc(text, func(port string) string { return w.ports[port] })
	fmt.Fprintf(&w.files, "-- %s --\n%s\n", name, strings.TrimRight(text, "\n"))
	return name
}

const (
	readExports = "if [ -f exports ]; then . ./exports; fi\n"
	keepExports = "\nexport -p >exports\n"
)

// run runs shell as it is printed. What it exports stays for the steps that follow.
func (w *scriptWriter) run(text string) {
	text = strings.ReplaceAll(text, "go run ./cmd/danqing", "danqing")
	w.step("exec sh -e %s", w.file("", "exec 2>&1\n"+readExports+text+keepExports))
}

// background starts a program that ends with the script, and waits until it listens.
func (w *scriptWriter) background(line string) {
	w.programs++
	name := fmt.Sprintf("program%d", w.programs)
	if strings.Contains(line, "danqing ") {
		w.ours = append(w.ours, name)
	}
	w.step("exec sh %s &%s&", w.file("", readExports+"exec env "+line), name)
	for program, port := range map[string]string{
		"redis-server": "6379", "versitygw": "7070", "danqing up": "8765", "danqing serve": "8765", "danqing simulator": "8766",
	} {
		if strings.Contains(line, program) {
			w.step("listening %s", w.ports[port])
		}
	}
	if strings.Contains(line, "danqing up --simulate") { // the other commands find it by that
		w.step("waitfor danqing-data/simulated/instance.json")
	}
}

// receive runs shell while a receiver of callbacks runs, which must get one and refuse
// what is not signed.
func (w *scriptWriter) receive(n int, receiver block, text string) {
	name := receiver.words["receiver"]
	start := map[string]string{"go": "exec ./receiver", "python": "exec python3 " + name, "js": "exec node " + name}[receiver.language]
	switch receiver.language {
	case "go":
		w.step("exec go build -C $REPOSITORY -o $WORK/receiver $WORK/%s", name)
	case "python":
		w.step("[!exec:python3] stop 'python3 is not installed'")
	case "js":
		w.step("[!exec:node] stop 'node is not installed'")
	}
	w.step("exec sh %s &receiver%d&", w.file("", readExports+start+" >got 2>&1"), n)
	w.step("listening %s", w.ports["9000"])
	job := fmt.Sprintf("cat%d", n)
	w.run(regexp.MustCompile(`\bcat\b`).ReplaceAllString(text, job))
	w.run("until danqing jobs show --simulate " + job + " | grep -q 'callback: delivered'; do sleep 0.1; done\n" +
		"curl -s -o answer -w '%{http_code}' -d '{}' http://127.0.0.1:9000/hook")
	w.step("stdout '^401$'")
	w.step("grep '^job.succeeded %s$' got\nkill -KILL receiver%d\nreleased %s", job, n, w.ports["9000"])
}

// waitListening waits until something accepts connections at a port of this machine, and
// waitReleased until nothing does.
func waitListening(ts *testscript.TestScript, _ bool, args []string) { waitPort(ts, args[0], true) }

func waitReleased(ts *testscript.TestScript, _ bool, args []string) { waitPort(ts, args[0], false) }

func waitPort(ts *testscript.TestScript, port string, listens bool) {
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			ts.Check(conn.Close())
		}
		if listens == (err == nil) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("something listens at port %s: %t, and should: %t", port, err == nil, listens)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// compareOutput compares what the last program printed with a file.
func compareOutput(ts *testscript.TestScript, _ bool, args []string) {
	printed, want := normalized(ts.ReadFile("stdout")), normalized(ts.ReadFile(args[0]))
	if !outputPattern(want).MatchString(printed) {
		ts.Fatalf("it printed\n%s\nand the document says\n%s", printed, want)
	}
}

// normalized replaces what differs from run to run.
func normalized(text string) string {
	for _, r := range []struct{ pattern, by string }{
		{`\bin [0-9.]+m?s\b`, "in TIME"},
		{`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`, "UUID"},
		{`\S*/danqing-data/`, "danqing-data/"},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.by)
	}
	return strings.TrimSpace(text)
}

// outputPattern matches a documented output, in which a line of "…" stands for any lines.
func outputPattern(want string) *regexp.Regexp {
	pattern := regexp.QuoteMeta(want)
	pattern = strings.ReplaceAll(pattern, "…\n", "(?:.*\n)*?")
	return regexp.MustCompile("^" + pattern + "$")
}
