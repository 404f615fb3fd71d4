package main

import (
	"cmp"
	"fmt"
	goruntime "runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// builtFrom is the commit of a build without a repository, as in the image of docker-compose.yml,
// which sets it by -ldflags. Else it is "".
var builtFrom string

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version and the commit it was built from",
		Example: "  danqing version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(p.stdout, versionText())
			return err
		},
	}
}

// versionText is what danqing version and danqing --version print.
func versionText() string {
	return fmt.Sprintf("danqing %s (commit %s) %s %s/%s", version(), commit(), goruntime.Version(), goruntime.GOOS, goruntime.GOARCH)
}

// version returns the module's version, which has the commit if it is no release.
func version() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// commit returns the commit that the program was built from, "modified" if files differed from
// it, and "unknown" if the build had no repository.
func commit() string {
	id, modified := builtFrom, ""
	if info, _ := debug.ReadBuildInfo(); info != nil {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				id = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = ", modified"
			}
		}
	}
	return cmp.Or(id, "unknown") + modified
}
