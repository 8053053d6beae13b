// POST /v2/models/NAME/generate and generate_stream: {"NAME OF AN INPUT OR A PARAMETER": value, ...,
// "parameters": {the same}}. Triton makes a tensor of a value with the name of an input, else a
// parameter; it has as many elements as are written.

import json from 'json.js';
import shapes from 'shapes.js';

const LIMITS = {objects: 4, depth: 1, advice: ''};
const MAX_PARTS = 200000;
let parts = 0;  // of this request: each has these variables for itself

function whole(r) {
    shapes.admit(r, () => check(r), '@http');
}

function stream(r) {
    shapes.admit(r, () => check(r), '@stream');
}

// Once the answer began, nobody but nginx can end it. njs gives memory back when a request ends, and
// not before: each part costs half a kilobyte.
function bounded(r, data, flags) {
    if (Number(r.variables.request_time) > Number(r.variables.stream_seconds)) {
        throw new Error('a stream took longer than STREAM_LIFETIME');
    }
    if (++parts > MAX_PARTS) {
        throw new Error(`a stream had more than ${MAX_PARTS} parts`);
    }
    r.sendBuffer(data, flags);
}

function check(r) {
    const body = r.requestBuffer;
    if (!body || !body.length) {
        shapes.refuse(400, 'The body is empty.');
    }
    if (r.variables.http_inference_header_content_length) {
        shapes.refuse(400, 'Binary data behind the JSON is for infer only.');
    }
    if (body.length > Number(r.variables.max_json)) {
        shapes.refuse(413, 'The JSON is too large.');
    }
    const text = body.toString('utf8');
    const written = json.keysIn(text, LIMITS);
    const request = json.parse(text);
    json.checkWritten(fields(request, 'The body') + nested(request), written);
}

function nested(request) {
    return request.parameters === undefined ? 0 : fields(request.parameters, 'Parameters');
}

function fields(holder, what) {
    const names = json.keys(holder, what);
    names.forEach((name) => {
        if (name !== 'parameters' || what === 'Parameters') {
            shapes.checkParameter(name, typeof holder[name] === 'string');
            checkValue(name, holder[name]);
        }
    });
    return names.length;
}

function checkValue(name, value) {
    const values = Array.isArray(value) ? value : [value];
    if (!values.length || values.some((each) => typeof each === 'object')) {
        shapes.refuse(400, 'Values must be texts, numbers, true, false, or lists of these that are not empty.');
    }
}

export default {whole, stream, bounded};
