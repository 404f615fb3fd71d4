package notify

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/webhook"
)

// format is how a service wants its messages.
type format string

const (
	formatFeishu   format = "feishu"
	formatDingTalk format = "dingtalk"
	formatWeCom    format = "wecom"
	formatSlack    format = "slack"
	formatGeneric  format = "generic"
)

// service is a chat service, or a program of one's own.
type service struct {
	format   format
	host     string // by which it is recognized; "" if by the prefix only
	language string
}

// services are the services, by the prefix that selects one, as in slack+https://….
func services() map[string]service {
	return map[string]service{
		"feishu":   {formatFeishu, "open.feishu.cn", chinese},
		"lark":     {formatFeishu, "open.larksuite.com", english},
		"dingtalk": {formatDingTalk, "oapi.dingtalk.com", chinese},
		"wecom":    {formatWeCom, "qyapi.weixin.qq.com", chinese},
		"slack":    {formatSlack, "hooks.slack.com", english},
		"generic":  {formatGeneric, "", english},
	}
}

// maxText returns the most bytes of a message's text, with room for what is around it. WeCom takes
// 2048 bytes, Feishu and DingTalk bodies of 20 KB; Slack recommends 4000 characters.
func (f format) maxText() int {
	return map[format]int{formatFeishu: 15_000, formatDingTalk: 15_000, formatWeCom: 2000, formatSlack: 3900, formatGeneric: 100_000}[f]
}

// Receiver is where alerts are sent. Its URL is a secret: String is what may be shown.
type Receiver struct {
	service
	// link is the URL. Its fragment signs the messages; it is never sent.
	link *url.URL
	// ID names the receiver in Redis: a hash of its URL.
	ID string
}

// String returns the receiver's format and host.
func (r *Receiver) String() string { return string(r.format) + " at " + r.link.Host }

// idBytes is the length of a receiver's ID before encoding.
const idBytes = 8

// ParseReceiver reads a URL of DANQING_ALERT_URL. language is that of the messages, "" for the one of
// the service. Its errors do not quote the URL.
func ParseReceiver(text, language string) (*Receiver, error) {
	chosen := service{}
	if name, rest, found := strings.Cut(text, "+"); found && !strings.Contains(name, ":") {
		text = rest
		if chosen = services()[name]; chosen.format == "" {
			return nil, errors.New("its format is none of feishu+, lark+, dingtalk+, wecom+, slack+ and generic+")
		}
	}
	link, err := url.Parse(text)
	if err != nil || link.Scheme != "https" && link.Scheme != "http" || link.Host == "" || link.User != nil {
		return nil, errors.New("must be an https or http URL, as in https://open.feishu.cn/open-apis/bot/v2/hook/…, without a password")
	}
	if chosen.format == "" {
		chosen = services()["generic"]
		for _, s := range services() {
			if s.host == strings.ToLower(link.Hostname()) {
				chosen = s
			}
		}
	}
	switch signed := link.Fragment != ""; {
	case chosen.format == formatGeneric && signed && webhook.ValidSecret(link.Fragment) != nil:
		return nil, errors.New("what follows # is no secret that can sign its alerts: make one of 24 to 64 bytes, as in #whsec_$(openssl rand -base64 32)")
	case chosen.format == formatGeneric && !signed:
		return nil, errors.New("it is none of the chat services, and needs a secret to sign its alerts: end it with #whsec_… (whsec_$(openssl rand -base64 32)), or begin it with feishu+, lark+, dingtalk+, wecom+ or slack+")
	case signed && (chosen.format == formatWeCom || chosen.format == formatSlack):
		return nil, fmt.Errorf("%s has no signatures: remove # and what follows", chosen.format)
	}
	chosen.language = cmp.Or(language, chosen.language)
	sum := sha256.Sum256([]byte(string(chosen.format) + " " + address(link).String()))
	return &Receiver{service: chosen, link: link, ID: hex.EncodeToString(sum[:idBytes])}, nil
}

// address returns a URL without its fragment.
func address(link *url.URL) *url.URL {
	to := *link
	to.Fragment, to.RawFragment = "", ""
	return &to
}

// sign is HMAC-SHA256 in base64.
func sign(key, text string) string {
	mac := hmac.New(sha256.New, []byte(key))
	_, _ = mac.Write([]byte(text)) // never fails
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// target returns the URL to post to. DingTalk's has the signature.
func (r *Receiver) target(now time.Time) string {
	to := address(r.link)
	if secret := r.link.Fragment; r.format == formatDingTalk && secret != "" {
		stamp := strconv.FormatInt(now.UnixMilli(), 10)
		query := to.Query()
		query.Set("timestamp", stamp)
		query.Set("sign", sign(secret, stamp+"\n"+secret))
		to.RawQuery = query.Encode()
	}
	return to.String()
}

// genericBody is the body for a program.
type genericBody struct {
	Type      string                  `json:"type"` // "alert"
	Timestamp time.Time               `json:"timestamp"`
	Simulated bool                    `json:"simulated,omitempty"`
	Text      string                  `json:"text"`
	Counts    map[jobs.AlertEvent]int `json:"counts"`
	Alerts    []genericAlert          `json:"alerts"`
}

type genericAlert struct {
	jobs.Alert
	Text string `json:"text"`
}

// body returns the body of a message.
func (r *Receiver) body(m *jobs.AlertMessage, now time.Time) ([]byte, error) {
	text := alertText(m, r.language, r.format.maxText())
	var body any
	switch r.format {
	case formatFeishu: // <at user_id="all"> would call everybody
		message := map[string]any{"msg_type": "text", "content": map[string]string{"text": strings.ReplaceAll(text, "<", "＜")}}
		if secret := r.link.Fragment; secret != "" { // Feishu's key is what others sign, and the text is empty
			stamp := strconv.FormatInt(now.Unix(), 10)
			message["timestamp"], message["sign"] = stamp, sign(stamp+"\n"+secret, "")
		}
		body = message
	case formatDingTalk, formatWeCom:
		body = map[string]any{"msgtype": "text", "text": map[string]string{"content": text}}
	case formatSlack:
		body = map[string]string{"text": strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)}
	case formatGeneric:
		generic := genericBody{Type: "alert", Timestamp: m.At, Simulated: m.Simulated, Text: text, Counts: m.Counts}
		for _, alert := range m.Alerts {
			generic.Alerts = append(generic.Alerts, genericAlert{alert, sentence(alert, r.language)})
		}
		body = generic
	}
	return compactjson.Marshal(body)
}

// check returns why a service did not accept a message. Chat services answer 200 with an error
// code. Their texts may quote what was sent, and are left out.
func (r *Receiver) check(answer *http.Response, body []byte) error {
	if err := statusError(r.String(), answer); err != nil || r.format == formatGeneric {
		return err
	}
	if r.format == formatSlack {
		if strings.TrimSpace(string(body)) == "ok" {
			return nil
		}
		return &deliveryError{cause: r.String() + ": the answer is not Slack's", remedy: "check DANQING_ALERT_URL"}
	}
	var codes struct {
		ErrCode *int `json:"errcode"`
		Code    *int `json:"code"`
	}
	code := &codes.ErrCode
	if r.format == formatFeishu {
		code = &codes.Code
	}
	if err := json.Unmarshal(body, &codes); err != nil || *code == nil {
		return &deliveryError{cause: r.String() + ": the answer is not that of such a robot", remedy: "check DANQING_ALERT_URL"}
	}
	if **code == 0 {
		return nil
	}
	return &deliveryError{cause: fmt.Sprintf("%s: the robot refused it with code %d", r, **code), remedy: codeRemedy(**code)}
}

// codeRemedy says what to do about the codes of robots that people meet.
func codeRemedy(code int) string {
	for remedy, codes := range map[string][]int{
		"its rate limit is reached": {9499, 11232, 45009, 130101, 660026},
		"end the URL with #SECRET, the robot's signing secret, and check the clock":                                  {19021},
		"this machine's address is not among those that the robot accepts":                                           {19022},
		"make Danqing a keyword of the robot":                                                                        {19024},
		"check the robot's security settings: #SECRET at the URL's end, the keyword Danqing, this machine's address": {310000},
		"the robot or its token does not exist: check DANQING_ALERT_URL":                                             {19001, 93000, 300001, 300005, 400101},
	} {
		if slices.Contains(codes, code) {
			return remedy
		}
	}
	return ""
}
