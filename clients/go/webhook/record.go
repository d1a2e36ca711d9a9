package webhook

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// A record is a response as the turn stores it, for duplicates: the same JSON in every language.
type record struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"` // in base64
}

// recordedHeaders belong to a response, and not to the exchange that it was made in.
var recordedHeaders = []string{
	"Content-Language", "Content-Location", "Content-Type", "Etag", "Last-Modified", "Location",
}

// longestResult of a turn, in bytes.
const longestResult = 64 * 1024

func recordOf(r *reply) record {
	made := record{Status: r.status, Headers: map[string]string{}, Body: r.body.Bytes()}
	if made.Body == nil {
		made.Body = []byte{} // which JSON has as text, and nil as null
	}
	for name := range r.header {
		if slices.Contains(recordedHeaders, http.CanonicalHeaderKey(name)) {
			made.Headers[name] = r.header.Get(name)
		}
	}
	if data, _, err := (oncegate.JSON{}).Encode(made); err != nil || len(data) > longestResult {
		// A duplicate of a long response gets the status alone.
		return record{Status: r.status, Headers: map[string]string{}, Body: []byte{}}
	}
	return made
}

// replayed is the response that a duplicate gets: 200 if it was handled otherwise, such as by a mark.
func replayed(duplicate *oncegate.NotGrantedError) *reply {
	var stored json.RawMessage
	var made record
	if duplicate.Result(&stored) != nil || json.Unmarshal(stored, &made) != nil || made.Status < 200 || made.Body == nil {
		return respond(http.StatusOK, "")
	}
	r := newReply()
	r.WriteHeader(made.Status)
	for name, value := range made.Headers {
		r.header.Set(name, value)
	}
	r.body.Write(made.Body)
	return r
}
