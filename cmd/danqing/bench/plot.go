package bench

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Sizes of a plot, in pixels. A panel has its axes inside its margins.
const (
	plotWidth                                          = 800
	panelWidth, panelHeight                            = plotWidth / 2, 220
	plotTop                                            = 72
	marginLeft, marginRight, marginTop, marginBottom   = 58, 22, 26, 36
	leastQueries, mostQueries, leastIdleMS, mostIdleMS = 0.7, 100, 15, 6000
	legendY, legendStep                                = 58, plotWidth / 6
)

// clientColor returns a client's color, the same in every panel.
func clientColor(client string) string {
	colors := map[string]string{clientDanqing: "#c1121f", clientOracle: "#6c757d", clientFixed: "#2a9d8f", clientAsynq: "#8338ec", clientOneAPI: "#bc6c25", clientSDK: "#0077b6"}
	return cmp.Or(colors[client], "#000000")
}

// Plot returns an SVG with the idle time against the queries a task, both on logarithmic
// scales, in a panel for each kind of tasks.
func (r *Report) Plot() []byte {
	groups := r.groups()
	columns := [][][]Row{} // by lanes
	for _, group := range groups {
		i := slices.IndexFunc(columns, func(c [][]Row) bool { return c[0][0].Lanes == group[0].Lanes })
		if i < 0 {
			columns, i = append(columns, nil), len(columns)
		}
		columns[i] = append(columns[i], group)
	}
	rows := 0
	for _, column := range columns {
		rows = max(rows, len(column))
	}
	var b strings.Builder
	width, height := max(len(columns), 2)*panelWidth, plotTop+rows*panelHeight
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="12" y="20" font-size="15" font-weight="bold">Idle time of a slot between two tasks, and what it costs in queries</text>`+"\n")
	fmt.Fprintf(&b, `<text x="12" y="38" fill="#555555">Lower is better, left is cheaper. Round trip %.0f ms, measured for %s, logarithmic scales.</text>`+"\n", r.RoundTripMS, r.time())
	for i, client := range order() {
		point(&b, float64(18+i*legendStep), legendY, client)
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`+"\n", 28+i*legendStep, legendY+4, client)
	}
	for i, column := range columns {
		for j, group := range column {
			panel(&b, group, float64(i*panelWidth), float64(plotTop+j*panelHeight))
		}
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// panel draws the axes and points of a kind of tasks.
func panel(b *strings.Builder, group []Row, left, top float64) {
	x := func(queries float64) float64 {
		return left + marginLeft + (panelWidth-marginLeft-marginRight)*position(queries, leastQueries, mostQueries)
	}
	y := func(idleMS float64) float64 {
		return top + panelHeight - marginBottom - (panelHeight-marginTop-marginBottom)*position(idleMS, leastIdleMS, mostIdleMS)
	}
	lanes := "1 lane"
	if group[0].Lanes > 1 {
		lanes = fmt.Sprintf("%d lanes", group[0].Lanes)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" font-weight="bold">tasks of %s, %s</text>`+"\n", left+marginLeft, top+marginTop-10, html.EscapeString(group[0].Tasks), lanes)
	for _, ms := range []float64{30, 100, 300, 1000, 3000} {
		label := fmt.Sprintf("%.0f ms", ms)
		if ms >= 1000 {
			label = fmt.Sprintf("%.0f s", ms/1000)
		}
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#dddddd"/>`, x(leastQueries), x(mostQueries), y(ms), y(ms))
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="#555555" text-anchor="end">%s</text>`+"\n", x(leastQueries)-5, y(ms)+4, label)
	}
	for _, queries := range []float64{1, 3, 10, 30, 100} {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#eeeeee"/>`, x(queries), x(queries), y(leastIdleMS), y(mostIdleMS))
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="#555555" text-anchor="middle">%.0f</text>`+"\n", x(queries), y(leastIdleMS)+14, queries)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="#555555" text-anchor="middle">queries a task</text>`+"\n", x(math.Sqrt(leastQueries*mostQueries)), y(leastIdleMS)+27)
	for _, row := range group {
		if row.Cycles > 0 {
			point(b, x(row.Queries), y(row.IdleMS), row.Client)
		}
	}
}

// point draws a client's point, with an edge that separates points in one place.
func point(b *strings.Builder, x, y float64, client string) {
	radius := 4.5
	if client == clientDanqing {
		radius = 6.5
	}
	fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s" stroke="#ffffff"/>`+"\n", x, y, radius, clientColor(client))
}

// position returns where a value is between two on a logarithmic scale, 0 to 1.
func position(value, least, most float64) float64 {
	return min(max(math.Log(value/least)/math.Log(most/least), 0), 1)
}
