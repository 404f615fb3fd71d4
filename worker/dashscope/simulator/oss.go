package simulator

import (
	"crypto/hmac"
	"crypto/md5"  //nolint:gosec // OSS's ETag
	"crypto/sha1" //nolint:gosec // OSS's version 1 signature
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"hash/crc64"
	"net/http"
	"strings"
	"time"
)

// The access key and the bucket in OSS's signatures and errors. Both are made up; the
// bucket has the form of the documented ones.
const (
	ossAccessKeyID = "LTAI5tSimulatedSimulated"
	ossBucket      = "dashscope-result-bj"
)

// ossError is an error in OSS's format.
type ossError struct {
	XMLName    xml.Name `xml:"Error"`
	Code       string   `xml:"Code"`
	Message    string   `xml:"Message"`
	RequestID  string   `xml:"RequestId"`
	HostID     string   `xml:"HostId"`
	Expires    string   `xml:"Expires,omitempty"`
	ServerTime string   `xml:"ServerTime,omitempty"`
	status     int
}

func (e *ossError) Error() string { return e.Code + ": " + e.Message }

// ossHeaders sets the headers of every OSS answer and returns the request ID.
func ossHeaders(w http.ResponseWriter, requestID string) string {
	id := strings.ToUpper(strings.ReplaceAll(requestID, "-", ""))[:24]
	w.Header().Set("Server", "AliyunOSS")
	w.Header().Set("X-Oss-Request-Id", id)
	return id
}

// writeOSSError writes an error in OSS's format.
func writeOSSError(w http.ResponseWriter, e *ossError, requestID string) {
	e.RequestID = ossHeaders(w, requestID)
	e.HostID = ossBucket + ".oss-cn-beijing.aliyuncs.com"
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(e.status)
	body, err := xml.MarshalIndent(e, "", "  ")
	if err != nil {
		return // unreachable: all fields are strings
	}
	_, _ = fmt.Fprintf(w, "%s%s\n", xml.Header, body) //nolint:gosec // escaped by the encoder; an error means that the client has disconnected
}

// contentHeaders sets OSS's checksum headers of an object.
func contentHeaders(w http.ResponseWriter, content []byte) {
	sum := md5.Sum(content) //nolint:gosec // OSS's ETag
	w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%X", sum)))
	w.Header().Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
	w.Header().Set("X-Oss-Hash-Crc64ecma", fmt.Sprint(crc64.Checksum(content, crc64.MakeTable(crc64.ECMA))))
	w.Header().Set("X-Oss-Object-Type", "Normal")
	w.Header().Set("X-Oss-Storage-Class", "Standard")
}

// ossSign returns a signature of OSS's version 1.
func ossSign(text string) string {
	secret := hash("simulator", "secret")
	mac := hmac.New(sha1.New, secret[:])
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// isoMillis formats a time as OSS does.
func isoMillis(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
