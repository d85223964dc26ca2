"""Notes with attachments: asynchronous and ordinary views, the ORM, an upload and a streamed response."""

import csv
from collections.abc import AsyncIterator

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_GET, require_POST

from notes.models import Note


class Line:
    """What `csv` writes to: gives each line back."""

    def write(self, line: str) -> str:
        return line


@require_POST
def add(request: HttpRequest) -> HttpResponse:
    attached = request.FILES.get("attachment")
    if not request.POST.get("title"):
        return JsonResponse({"error": "a note has a title"}, status=400)
    note = Note.objects.create(
        title=request.POST["title"],
        text=request.POST.get("text", ""),
        attachment=b"".join(attached.chunks()) if attached else b"",
    )
    return JsonResponse({"id": note.pk, "attached": len(note.attachment)}, status=201)


@require_GET
async def show(request: HttpRequest, number: int) -> HttpResponse:
    note = await Note.objects.filter(pk=number).afirst()
    if note is None:
        return JsonResponse({"error": "there is no such note"}, status=404)
    return JsonResponse({"title": note.title, "text": note.text, "attached": len(note.attachment)})


@require_GET
async def export(request: HttpRequest) -> StreamingHttpResponse:
    writer = csv.writer(Line())

    async def lines() -> AsyncIterator[str]:
        async for note in Note.objects.all():
            yield writer.writerow([note.pk, note.title, len(note.attachment)])

    return StreamingHttpResponse(lines(), content_type="text/csv")
