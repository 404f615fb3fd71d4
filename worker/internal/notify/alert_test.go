package notify

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/webhook"
)

const (
	webhookSecret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
	token         = "hush-token"
)

// The signatures are those of the vendors' published programs: Feishu's for "demo" at 1599360473,
// DingTalk's for "this is secret" at 1599360473000.
func TestSignatures(t *testing.T) {
	t.Parallel()
	feishu, err := ParseReceiver("https://open.feishu.cn/open-apis/bot/v2/hook/x#demo", "")
	require.NoError(t, err)
	at := time.Unix(1599360473, 0)
	body, err := feishu.body(&jobs.AlertMessage{}, at)
	require.NoError(t, err)
	assert.JSONEq(t, `{"msg_type":"text","content":{"text":"Danqing: "},"timestamp":"1599360473","sign":"l1N0gAcBjdwBvGm1xMjOF0XSyaLRpR7tuO5dHfhAYc8="}`, string(body))
	assert.Equal(t, "https://open.feishu.cn/open-apis/bot/v2/hook/x", feishu.target(at))

	dingTalk, err := ParseReceiver("https://oapi.dingtalk.com/robot/send?access_token=x#this is secret", "")
	require.NoError(t, err)
	to, err := url.Parse(dingTalk.target(at))
	require.NoError(t, err)
	assert.Equal(t, url.Values{"access_token": {"x"}, "timestamp": {"1599360473000"}, "sign": {"hXZTWifRGHclNuZSKxoXc//sh51SWfVfRIhcdeKs63I="}}, to.Query())
	assert.Empty(t, to.Fragment)
}

// request is what a local receiver got.
type request struct {
	http.Header

	link *url.URL
	body string
}

// Each service gets its own format, and its refusals are recognized, though most have the status 200.
// No error has a part of the URL but its host.
func TestFormats(t *testing.T) {
	t.Parallel()
	message := jobs.AlertMessage{
		ID: "7", At: time.Date(2026, 11, 29, 16, 0, 0, 0, time.UTC), Counts: map[jobs.AlertEvent]int{jobs.AlertHeld: 1},
		Alerts: []jobs.Alert{{Event: jobs.AlertHeld, Subject: "cat", Values: []string{`SubmitAmbiguous: <at user_id="all"> & more`}}},
	}
	english := `Danqing: job cat is held for a decision: SubmitAmbiguous: <at user_id="all"> & more` + "\n  → danqing jobs show cat"
	chinese := `Danqing: 任务 cat 等待您的决定：SubmitAmbiguous: <at user_id="all"> & more` + "\n  → danqing jobs show cat"
	for name, c := range map[string]struct {
		fragment, accepts string
		refusals          map[string]string // answers, and what the error says
		check             func(t *testing.T, r request, body map[string]any)
	}{
		"feishu": {
			"hush-secret", `{"code":0,"msg":"success"}`,
			map[string]string{`{"code":19021,"msg":"hush"}`: "code 19021 (end the URL with #SECRET", `{"code":19024}`: "keyword", `{"code":9499}`: "rate limit", `{}`: "not that of such a robot", `hush`: "not that of such a robot"},
			func(t *testing.T, _ request, body map[string]any) {
				t.Helper()
				assert.Equal(t, map[string]any{"text": strings.ReplaceAll(chinese, "<", "＜")}, body["content"])
				stamp, _ := body["timestamp"].(string)
				assert.Equal(t, sign(stamp+"\nhush-secret", ""), body["sign"])
			},
		},
		"lark": {"", `{"code":0}`, nil, func(t *testing.T, _ request, body map[string]any) {
			t.Helper()
			assert.Equal(t, map[string]any{"msg_type": "text", "content": map[string]any{"text": strings.ReplaceAll(english, "<", "＜")}}, body)
		}},
		"dingtalk": {
			"hush-secret", `{"errcode":0,"errmsg":"ok"}`,
			map[string]string{`{"errcode":310000,"errmsg":"hush"}`: "code 310000 (check the robot's security settings", `{"errcode":130101}`: "rate limit", `{"code":0}`: "not that of such a robot"},
			func(t *testing.T, r request, body map[string]any) {
				t.Helper()
				assert.Equal(t, map[string]any{"msgtype": "text", "text": map[string]any{"content": chinese}}, body)
				assert.Equal(t, sign("hush-secret", r.link.Query().Get("timestamp")+"\nhush-secret"), r.link.Query().Get("sign"))
			},
		},
		"wecom": {
			"", `{"errcode":0,"errmsg":"ok"}`, map[string]string{`{"errcode":93000,"errmsg":"hush"}`: "code 93000 (the robot or its token does not exist", `{"errcode":45009}`: "rate limit", `{"errcode":7}`: "code 7"},
			func(t *testing.T, _ request, body map[string]any) {
				t.Helper()
				assert.Equal(t, map[string]any{"msgtype": "text", "text": map[string]any{"content": chinese}}, body)
			},
		},
		"slack": {
			"", "ok", map[string]string{"invalid_payload": "not Slack's"},
			func(t *testing.T, _ request, body map[string]any) {
				t.Helper()
				assert.Equal(t, map[string]any{"text": strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(english)}, body)
			},
		},
		"generic": {
			webhookSecret, "", nil,
			func(t *testing.T, r request, _ map[string]any) {
				t.Helper()
				require.NoError(t, webhook.Verify(r.Header, []byte(r.body), []string{webhookSecret}, time.Now()))
				assert.Equal(t, "7", r.Get("webhook-id"))
				said, _, _ := strings.Cut(strings.TrimPrefix(english, "Danqing: "), "\n")
				assert.JSONEq(t, fmt.Sprintf(`{"type":"alert","timestamp":"2026-11-29T16:00:00Z","text":%s,"counts":{"job.held":1},"alerts":[{"event":"job.held","subject":"cat","values":[%s],"text":%s}]}`,
					strconv.Quote(english), strconv.Quote(message.Alerts[0].Values[0]), strconv.Quote(said)), r.body)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			type reply struct {
				status int
				body   string
			}
			got, replies := make(chan request, 1), make(chan reply, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				assert.NoError(t, err)
				got <- request{r.Header, r.URL, string(body)}
				answer := <-replies
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, answer.body)
			}))
			defer server.Close()
			link := name + "+" + server.URL + "/hook?access_token=" + token
			if c.fragment != "" {
				link += "#" + c.fragment
			}
			r, err := ParseReceiver(link, "")
			require.NoError(t, err)
			assert.NotContains(t, fmt.Sprintf("%s %v %+v %#v %q", r, r, r, r, []*Receiver{r}), "hush")
			send := func() error { return SendAlert(t.Context(), r, message) }
			replies <- reply{http.StatusOK, c.accepts}
			require.NoError(t, send())
			sent := <-got
			assert.Equal(t, token, sent.link.Query().Get("access_token"))
			assert.NotContains(t, sent.body+fmt.Sprint(sent.Header, sent.link), "secret")
			body := map[string]any{}
			require.NoError(t, json.Unmarshal([]byte(sent.body), &body))
			c.check(t, sent, body)

			var failed *deliveryError
			for text, want := range c.refusals {
				replies <- reply{http.StatusOK, text}
				require.ErrorAs(t, send(), &failed, text)
				assert.Contains(t, failed.Error(), want)
				assert.Contains(t, failed.Error(), strings.TrimPrefix(server.URL, "http://"))
				assert.NotContains(t, failed.Error(), "hush")
				assert.False(t, failed.final)
				<-got
			}
			replies <- reply{http.StatusServiceUnavailable, ""}
			require.ErrorAs(t, send(), &failed)
			assert.Contains(t, failed.Error(), "503 Service Unavailable")
			server.Close()
			require.ErrorAs(t, send(), &failed)
			assert.Contains(t, failed.Error(), "connection refused")
			assert.NotContains(t, failed.Error(), "hush")
		})
	}
}

// What is no receiver is refused with the reason, which does not quote it. Services are recognized by
// their hosts, and their languages can be chosen.
func TestParseReceiver(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"hush":                          "must be an https or http URL",
		"ftp://hush":                    "must be an https or http URL",
		"https://":                      "must be an https or http URL",
		"https://user:hush@x.com":       "without a password",
		"https://\x7fhush":              "must be an https or http URL",
		"hush+https://x.com":            "none of feishu+",
		"https://x.com/hush":            "end it with #whsec_",
		"https://x.com/#whsec_hush":     "what follows # is no secret",
		"https://hooks.slack.com/#hush": "slack has no signatures",
		"wecom+https://x.com/#hush":     "wecom has no signatures",
	} {
		_, err := ParseReceiver(text, "")
		require.ErrorContains(t, err, want, text)
		assert.NotContains(t, err.Error(), "hush")
	}
	ids := map[string]bool{}
	for text, want := range map[string][3]string{
		"https://open.feishu.cn/open-apis/bot/v2/hook/x":         {"feishu at open.feishu.cn", chinese},
		"https://open.feishu.cn/open-apis/bot/v2/hook/y":         {"feishu at open.feishu.cn", english, english},
		"https://open.larksuite.com/open-apis/bot/v2/hook/x#a+b": {"feishu at open.larksuite.com", english},
		"https://OAPI.dingtalk.com/robot/send?access_token=x":    {"dingtalk at OAPI.dingtalk.com", chinese},
		"https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x": {"wecom at qyapi.weixin.qq.com", chinese},
		"https://hooks.slack.com/services/T/B/x":                 {"slack at hooks.slack.com", chinese, chinese},
		"feishu+http://relay:8080/x":                             {"feishu at relay:8080", chinese},
		"https://ops.example.com/x#" + webhookSecret:             {"generic at ops.example.com", english},
	} {
		r, err := ParseReceiver(text, want[2])
		require.NoError(t, err, text)
		assert.Equal(t, []string{want[0], want[1]}, []string{r.String(), r.language})
		assert.Regexp(t, "^[0-9a-f]{16}$", r.ID)
		ids[r.ID] = true
	}
	assert.Len(t, ids, 8)
}

// Every event has a sentence in both languages, and says its values. Many of one event are a number
// and the first ones.
func TestAlertText(t *testing.T) {
	t.Parallel()
	m := &jobs.AlertMessage{Simulated: true, Counts: map[jobs.AlertEvent]int{}}
	for _, event := range jobs.AlertEvents() {
		said := phrases()[event]
		for _, language := range []string{english, chinese} {
			n := strings.Count(in(said.sentence, language), "%s")
			require.Positive(t, n, event)
			assert.Equal(t, strings.Count(said.sentence[0], "%s"), n, event)
			text := sentence(jobs.Alert{Event: event, Subject: "it", Values: []string{"v1", "v2", "v3", "v4"}[:n-1]}, language)
			assert.NotContains(t, text, "%!", event)
			for i := range n - 1 {
				assert.Contains(t, text, "v"+strconv.Itoa(i+1), event)
			}
			assert.NotContains(t, sentence(jobs.Alert{Event: event, Values: []string{"1", "2", "3", "4", "5"}}, language), "%!")
			assert.NotContains(t, sentence(jobs.Alert{Event: event}, language), "%!")
			assert.NotEmpty(t, in(said.many, language), event)
		}
	}
	for i := range 3 {
		m.Alerts = append(m.Alerts, jobs.Alert{Event: jobs.AlertPaused, Subject: "a:m" + strconv.Itoa(i), Values: []string{"arrears"}})
	}
	m.Alerts = append(m.Alerts, jobs.Alert{Event: jobs.AlertBatchOver, Subject: "spring", Values: []string{"480", "20", "0", "76.8"}})
	m.Counts = map[jobs.AlertEvent]int{jobs.AlertPaused: 12, jobs.AlertBatchOver: 1}
	assert.Equal(t, `Danqing (simulated): lanes paused: 12
  lane a:m0 is paused: arrears
  lane a:m1 is paused: arrears
  lane a:m2 is paused: arrears
  … and 9 more
batch spring is over: 480 jobs succeeded, 20 failed, 0 were canceled; it cost 76.8 yuan`, alertText(m, english, 10_000))
	text := alertText(m, chinese, 10_000)
	assert.True(t, strings.HasPrefix(text, "Danqing（模拟）：暂停的通道: 12\n  通道 a:m0 已暂停：arrears\n"), text)
	assert.Contains(t, text, "\n  … 另有 9 个\n批次 spring 已结束：成功 480，失败 20，取消 0；花费 76.8 元")
	for _, alert := range m.Alerts {
		alert.Values = []string{strings.Repeat("长", 100)}
		m.Alerts = append(m.Alerts, alert, alert, alert)
	}
	short := alertText(m, chinese, formatWeCom.maxText())
	assert.LessOrEqual(t, len(short), 2000)
	assert.True(t, strings.HasSuffix(short, "\n…"))
	assert.Equal(t, "pigeon x 1", sentence(jobs.Alert{Event: "pigeon", Subject: "x", Values: []string{"1"}}, chinese), "of another version")
}
