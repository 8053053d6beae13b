// Calls over gRPC: one message each, or several where it is a stream, not compressed; a
// ModelInferRequest is read before Triton does.
// Numbers of fields: grpc_service.proto of the KServe v2 protocol, with Triton's extensions.

import protobuf from 'protobuf.js';
import shapes from 'shapes.js';

const PREFIX = 5;  // a byte that says whether it is compressed, four of the length
const MAX_PACKED = 160;  // bytes of sixteen dimensions of any size

function infer(r) {
    shapes.admit(r, () => {
        whole(r);
        checkMessage(r.requestBuffer);
    }, '@grpc');
}

function ask(r) {
    shapes.admit(r, () => whole(r), '@grpc');
}

// The body must be one message with its prefix.
function whole(r) {
    if (r.httpVersion !== '2.0' || !/^application\/grpc(\+proto)?$/.test(r.headersIn['Content-Type'])) {
        shapes.refuse(415, 'gRPC needs HTTP/2 and the content type application/grpc.');
    }
    const body = r.requestBuffer;
    if (!body || body.length < PREFIX || body.readUInt32BE(1) !== body.length - PREFIX) {
        shapes.refuse(400, 'A call must hold exactly one message.');
    }
    checkPlain(body[0]);
}

function checkPlain(flag) {
    if (flag !== 0) {
        shapes.refuse(405, 'Compressed messages are not served here.');
    }
}

// Of the message in a stream, with its prefix, that begins there.
function lengthOf(bytes, at, most) {
    checkPlain(bytes[at]);
    const length = PREFIX + bytes.readUInt32BE(at + 1);
    if (length > most) {
        shapes.refuse(413, 'The request is too large.');
    }
    return length;
}

// A ModelInferRequest with its prefix.
function checkMessage(body) {
    checkRequest(protobuf.message(body, PREFIX, body.length), body.length);
}

function checkRequest(request, bytes) {
    let inputs = 0;
    protobuf.each(request, (field) => {
        if (field.number === 4) {
            checkParameter(protobuf.inside(request, field));
        } else if (field.number === 5) {
            checkInput(protobuf.inside(request, field), bytes, inputs++);
        } else if (field.number === 6) {
            checkOutput(protobuf.inside(request, field));
        }
    });
    shapes.checkCount(inputs);
}

function checkInput(input, bytes, index) {
    const shape = [];
    protobuf.each(input, (field) => {
        if (field.number === 3) {
            readDims(input, field, shape);
        } else if (field.number === 4) {
            checkParameter(protobuf.inside(input, field));
        }
    });
    shapes.check(shape, bytes, index);
}

// One, or packed any number of them; both are allowed, and both at once.
function readDims(input, field, shape) {
    if (field.wire === protobuf.VARINT) {
        shape.push(field.value);
        return;
    }
    const packed = protobuf.inside(input, field);
    if (packed.end - packed.at > MAX_PACKED) {
        protobuf.malformed();
    }
    while (packed.at < packed.end) {
        shape.push(protobuf.varint(packed, 10));
    }
}

function checkOutput(output) {
    protobuf.each(output, (field) => {
        if (field.number === 2) {
            checkParameter(protobuf.inside(output, field), true);
        }
    });
}

// An entry of a map: a key, and a value that is a string where it has a field 3. Both may be there
// more than once.
function checkParameter(entry, ofOutput) {
    const names = [];
    let isString = false;
    protobuf.each(entry, (field) => {
        if (field.number === 1) {
            names.push(protobuf.text(entry, field));
        } else if (field.number === 2) {
            protobuf.each(protobuf.inside(entry, field), (kind) => {
                isString = isString || kind.number === 3;
            });
        }
    });
    names.forEach((name) => shapes.checkParameter(name, isString, ofOutput));
}

export default {infer, ask, whole, lengthOf, checkMessage, PREFIX};
