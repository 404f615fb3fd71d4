package drill

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// absurdReply sends a reply of 200 that makes no sense, instead of the right one or made
// of it.
func (w *wire) absurdReply(rw http.ResponseWriter, route string, right *reply) {
	bodies := absurdBodies()
	if changed := w.absurdTask(route, right); len(changed) > 0 && w.rng.IntN(2) == 0 {
		bodies = changed
	}
	body := bodies[w.rng.IntN(len(bodies))]
	w.log.Info("absurd reply", "route", route, "body", body[:min(len(body), 200)])
	maps.Copy(rw.Header(), right.header)
	rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
	rw.WriteHeader(http.StatusOK)
	_, _ = rw.Write([]byte(body)) // the worker may have disconnected
}

// absurdBodies are replies to any request.
func absurdBodies() []string {
	return []string{
		``, `null`, `[]`, `"ok"`, `{}`, `{"output":null}`, `{"output":[]}`, `{"output":{"task_id":7}}`,
		`{"output":{"task_id":"","task_status":""}}`, `{"output":{"task_id":"../../x","task_status":"RUNNING"}}`,
		`{"output":{"task_id":"` + strings.Repeat("x", 10_000) + `","task_status":"PENDING"}}`,
		`{"data":"none","total":-1}`, `<html><body>Welcome</body></html>`, "\x00\xff\xfe",
		strings.Repeat(`{"output":`, 5000), `{"output":{"task_id":"a","task_status":"SUCC`,
	}
}

// absurdTask returns replies made of the right one to a create or a query: of another
// task, of an unknown state, with more images than exist.
func (w *wire) absurdTask(route string, right *reply) (bodies []string) {
	var answer dashscope.TaskResponse
	if route != routeCreate && route != routeQuery || json.Unmarshal(right.body.Bytes(), &answer) != nil || answer.Output.TaskID == "" {
		return nil
	}
	add := func(change func(*dashscope.TaskResponse)) {
		changed := answer
		if answer.Usage != nil {
			usage := *answer.Usage
			changed.Usage = &usage
		}
		changed.Output.Results = slices.Clone(answer.Output.Results)
		change(&changed)
		body, err := json.Marshal(changed)
		if err == nil {
			bodies = append(bodies, string(body))
		}
	}
	for _, task := range w.sim.Tasks() {
		if task.ID != answer.Output.TaskID {
			add(func(a *dashscope.TaskResponse) { a.Output.TaskID = task.ID })
			break
		}
	}
	add(func(a *dashscope.TaskResponse) { a.Output.TaskStatus = "\x1b[31mEXPLODED" })
	if route == routeQuery {
		add(func(a *dashscope.TaskResponse) { a.Output.TaskStatus = dashscope.StatusUnknown })
	}
	complete := !slices.ContainsFunc(answer.Output.Results, func(r dashscope.Result) bool { return r.URL == "" })
	if len(answer.Output.Results) > 0 && complete && answer.Usage != nil { // every image was charged
		add(func(a *dashscope.TaskResponse) { a.Usage.ImageCount = 1 << 40 })
		add(func(a *dashscope.TaskResponse) {
			for len(a.Output.Results) < 5000 {
				a.Output.Results = append(a.Output.Results, a.Output.Results[0])
			}
		})
	}
	return bodies
}

// laggingList answers a list without the tasks of the last lagTime.
func (w *wire) laggingList(rw http.ResponseWriter, r *http.Request) {
	kept := &reply{header: http.Header{}}
	w.service.ServeHTTP(kept, r)
	var list dashscope.ListResponse
	if kept.status == http.StatusOK && json.Unmarshal(kept.body.Bytes(), &list) == nil {
		before := len(list.Data)
		list.Data = slices.DeleteFunc(list.Data, func(task dashscope.TaskInfo) bool {
			return time.Since(time.UnixMilli(task.GmtCreate)) < lagTime
		})
		list.Total -= before - len(list.Data)
		if body, err := json.Marshal(list); err == nil {
			kept.body.Reset()
			kept.body.Write(body)
			kept.header.Del("Content-Length")
		}
	}
	kept.send(rw)
}
