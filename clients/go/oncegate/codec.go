package oncegate

import (
	"bytes"
	"encoding/json"
	"fmt"
)

const (
	jsonType  = "application/json"
	bytesType = "application/octet-stream"
)

// A Codec decides how a handler's result is stored, so that a duplicate gets the same value.
type Codec interface {
	// Encode returns the stored form, at most 64 KiB, and the name of its type.
	Encode(value any) (data []byte, resultType string, err error)
	// Decode stores the value of a stored form in what into points to.
	Decode(data []byte, resultType string, into any) error
}

// JSON is the default [Codec]. Bytes are stored as they are.
type JSON struct{}

// Encode returns the value as compact JSON.
func (JSON) Encode(value any) ([]byte, string, error) {
	if data, ok := value.([]byte); ok {
		return data, bytesType, nil
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, "", err
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), jsonType, nil
}

// Decode reads JSON. What has another type is bytes, for a *[]byte or an *any.
func (JSON) Decode(data []byte, resultType string, into any) error {
	if resultType == jsonType {
		return json.Unmarshal(data, into)
	}
	switch into := into.(type) {
	case *[]byte:
		*into = data
	case *any:
		*into = data
	default:
		return fmt.Errorf("a result of type %q cannot be decoded as %T", resultType, into)
	}
	return nil
}

// encode stores nothing for nil, and for the struct{} of a handler without a result.
func encode(codec Codec, value any) ([]byte, string, error) {
	switch value.(type) {
	case nil, struct{}:
		return nil, "", nil
	}
	return codec.Encode(value)
}

// A stored result of a turn, and how to read it.
type stored struct {
	data       []byte
	resultType string
	codec      Codec
}

// decode leaves into as it is if nothing is stored.
func (s stored) decode(into any) error {
	if len(s.data) == 0 && s.resultType == "" {
		return nil
	}
	return s.codec.Decode(s.data, s.resultType, into)
}
