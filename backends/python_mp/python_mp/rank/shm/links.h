/* The links between stages: a message is one piece or more, its header in the first. */
#include <string.h>

static Status send_message(Group *group, const char *x, const Header *header) {
    Link *link = group->next;
    size_t left = header->bytes;
    if (aborted(group)) return ABORTED;
    do {
        Status status = wait_for(group, &link->received, group->sent + 1 - DEPTH);
        if (status != OK) return status;
        Piece *piece = &link->pieces[group->sent % DEPTH];
        size_t part = smaller(left, PIECE_BYTES);
        piece->header = *header;
        show(piece->data, x, part);
        x += part, left -= part;
        publish(&link->sent, ++group->sent);
    } while (left);
    return OK;
}

static Status wait_message(Group *group, Piece **piece) {
    if (aborted(group)) return ABORTED;
    *piece = &group->previous->pieces[group->received % DEPTH];
    return wait_for(group, &group->previous->sent, group->received + 1);
}

static Status receive_message(Group *group, char *x, size_t bytes) {
    do {
        Piece *piece;
        Status status = wait_message(group, &piece);
        if (status != OK) return status;
        size_t part = smaller(bytes, PIECE_BYTES);
        if (part) memcpy(x, piece->data, part); /* an empty tensor has no address */
        x += part, bytes -= part;
        publish(&group->previous->received, ++group->received);
    } while (bytes);
    return OK;
}
