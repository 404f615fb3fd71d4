package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// order is the order of the clients in a table: Danqing first, the oracle last.
func order() []string {
	return []string{clientDanqing, clientFixed, clientAsynq, clientOneAPI, clientSDK, clientOracle}
}

// Print prints a table of at most 80 columns for each kind of tasks.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Round trip %.0f ms; all clients at once, for %s.\n", r.RoundTripMS, r.time())
	for _, group := range r.groups() {
		noun := "lanes"
		if group[0].Lanes == 1 {
			noun = "lane"
		}
		fmt.Fprintf(&b, "\nTasks of %s, %d %s of an account:\n", group[0].Tasks, group[0].Lanes, noun)
		fmt.Fprintf(&b, "%-18s  %6s  %8s  %9s  %9s  %9s\n", "", "busy", "queries/", "noticed", "create", "pictures/")
		fmt.Fprintf(&b, "%-18s  %6s  %8s  %9s  %9s  %9s\n", "", "", "task", "after", "after", "hour")
		for _, row := range group {
			if row.Cycles == 0 {
				fmt.Fprintf(&b, "%-18s  no task was followed by another one: measure longer\n", row.Client)
				continue
			}
			fmt.Fprintf(&b, "%-18s  %4.1f %%  %8.1f  %6.0f ms  %6.1f ms  %9.0f", row.Client, 100*row.Busy, row.Queries, row.NoticeMS, row.CreateMS, row.PicturesPerHour)
			if row.GivenUp > 0 {
				fmt.Fprintf(&b, "  %d lost", row.GivenUp)
			}
			b.WriteString("\n")
		}
	}
	if late := r.lateness(); late > mostLatenessMS {
		fmt.Fprintf(&b, "\nThe oracle idles %.0f ms more than the round trip: the machine is too busy.\nEvery figure is too bad by about as much.\n", late)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// time returns how long was measured.
func (r *Report) time() string {
	text := (time.Duration(r.Seconds * float64(time.Second))).String()
	if r.Simulated {
		return text + " of simulated time"
	}
	return text
}

// mostLatenessMS is the lateness at which a report warns.
const mostLatenessMS = 10

// lateness returns how much longer the oracle has idled than the round trip, in milliseconds,
// with one lane: a measure of how busy the machine is.
func (r *Report) lateness() float64 {
	late, n := 0.0, 0.0
	for _, row := range r.Rows {
		if row.Client == clientOracle && row.Lanes == 1 && row.Cycles > 0 {
			late, n = late+row.IdleMS-r.RoundTripMS, n+1
		}
	}
	return late / max(n, 1)
}

// groups returns the rows of each kind of tasks, in the order of the clients.
func (r *Report) groups() [][]Row {
	var groups [][]Row
	for _, row := range r.Rows {
		i := slices.IndexFunc(groups, func(g []Row) bool { return g[0].Tasks == row.Tasks && g[0].Lanes == row.Lanes })
		if i < 0 {
			groups, i = append(groups, nil), len(groups)
		}
		groups[i] = append(groups[i], row)
	}
	for _, group := range groups {
		slices.SortFunc(group, func(a, b Row) int {
			return cmp.Compare(slices.Index(order(), a.Client), slices.Index(order(), b.Client))
		})
	}
	return groups
}
