// ModelStreamInfer. nginx's HTTP part cannot show the messages of a stream before they go on, so it
// sends each call by a connection of its own through this one: HTTP/2 as nginx writes it and as
// Triton answers. A message's bytes go on as they come, but for the last ones, which wait until
// all of it was found right: Triton never has a whole message that was not.
// https://www.rfc-editor.org/rfc/rfc9113#name-frame-format

import calls from 'grpc.js';
import shapes from 'shapes.js';

const PREFACE = 24;
const DATA = 0, HEADERS = 1;
const END_STREAM = 1, END_HEADERS = 4, PADDED = 8;
const STATUS = {400: 3, 405: 12, 413: 8};  // gRPC's, of HTTP's
const LATE = {status: 'late', why: 'The stream took longer than is allowed here.'};

function checked(s) {
    const began = Date.now();
    const call = {hasAnswered: false, isOver: false, refusal: null};
    const message = {memory: Buffer.alloc(0), used: 0, most: Number(s.variables.max_body)};
    const up = frames(PREFACE, (frame, bytes) => sent(message, frame, bytes));
    const down = frames(0, (frame) => answered(call, frame));

    function check(feed) {
        try {
            if (Date.now() - began > 1000 * Number(s.variables.stream_seconds)) {
                throw LATE;
            }
            feed();
        } catch (refusal) {
            if (!refusal.status) {
                throw refusal;
            }
            call.refusal = refusal;
        }
    }

    s.on('upstream', (data, flags) => {
        if (!call.refusal) {
            check(() => up.feed(data));
            if (!call.refusal) {
                s.send(data, flags);
            } else if (down.isBetween()) {
                s.sendDownstream(end(s, call), {flush: true});
            }
        }
    });

    s.on('downstream', (data, flags) => {
        if (call.isOver) {
            return;
        }
        const whole = down.feed(data);
        check(() => {});
        if (call.refusal && (whole || down.isBetween())) {
            s.send(Buffer.concat([data.subarray(0, whole), end(s, call)]), {flush: true});
        } else {  // or within a frame of which the client has the beginning
            s.send(data, flags);
        }
    });
}

// Reads frames as they come; visit(frame, bytes) is called for each stretch of a frame's content,
// and once for one that has none.
function frames(skip, visit) {
    const state = {skip, head: [], left: 0, frame: null};

    // Where the last frame ends that is complete now; 0 where none is.
    function feed(data) {
        let at = 0;
        let whole = 0;
        while (at < data.length) {
            if (state.skip) {
                const skipped = Math.min(state.skip, data.length - at);
                state.skip -= skipped;
                at += skipped;
                continue;
            }
            if (!state.frame) {
                state.head.push(data[at++]);
                if (state.head.length < 9) {
                    continue;
                }
                begin();
            }
            const taken = Math.min(state.left, data.length - at);
            visit(state.frame, data.subarray(at, at + taken));
            at += taken;
            state.left -= taken;
            if (!state.left) {
                state.frame = null;
                whole = at;
            }
        }
        return whole;
    }

    function begin() {
        const head = state.head;
        state.left = head[0] * 65536 + head[1] * 256 + head[2];
        state.frame = {kind: head[3], flags: head[4]};
        state.head = [];
    }

    return {feed, isBetween: () => !state.frame && !state.head.length && !state.skip};
}

// Collects the client's messages; checks each that is complete.
function sent(message, frame, bytes) {
    if (frame.kind !== DATA) {
        return;
    }
    if (frame.flags & PADDED) {
        shapes.refuse(400, '');
    }
    keep(message, bytes);
    let at = 0;
    for (let length; (length = needed(message, at)) <= message.used - at; at += length) {
        calls.checkMessage(message.memory.subarray(at, at + length));
    }
    if (at) {
        message.memory = Buffer.concat([message.memory.subarray(at, message.used)]);
        message.used -= at;
    }
}

// Twice the room whenever there is too little: parts may be of a byte each.
function keep(message, bytes) {
    const used = message.used + bytes.length;
    if (used > message.memory.length) {
        const room = Buffer.alloc(2 * used);
        message.memory.copy(room, 0, 0, message.used);
        message.memory = room;
    }
    bytes.copy(message.memory, message.used);
    message.used = used;
}

// The length of the message that begins there, or of the prefix that says it.
function needed(message, at) {
    const begin = message.memory.subarray(at, message.used);
    return begin.length < calls.PREFIX ? calls.PREFIX : calls.lengthOf(begin, message.most);
}

function answered(call, frame) {
    call.hasAnswered = call.hasAnswered || frame.kind === HEADERS;
    call.isOver = call.isOver || (frame.kind <= HEADERS && (frame.flags & END_STREAM) > 0);
}

// An answer of ours in the place of what Triton would say; nothing where Triton has ended it.
function end(s, call) {
    if (call.isOver) {
        return Buffer.from('');
    }
    call.isOver = true;
    const status = call.refusal === LATE ? 4 : STATUS[call.refusal.status] || 3;
    const why = call.refusal.why || 'The request is malformed.';
    s.log(`a stream was ended: ${why}`);
    const begins = call.hasAnswered ? [] : [Buffer.from([0x88]), field('content-type', 'application/grpc')];
    const block = Buffer.concat(begins.concat([field('grpc-status', String(status)), field('grpc-message', why)]));
    const head = Buffer.from([0, block.length >> 8, block.length & 255, HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, 1]);
    return Buffer.concat([head, block]);
}

// A literal of HPACK that nobody remembers; both parts are shorter than 127 bytes.
function field(name, value) {
    return Buffer.concat([
        Buffer.from([0, name.length]), Buffer.from(name), Buffer.from([value.length]), Buffer.from(value),
    ]);
}

export default {checked};
