/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The processor's side: the multiboot entry, ports, and interrupts. Interrupts are open only within
 * wait_for_interrupt(), which they end, and which returns the vector. So nothing else is ever
 * interrupted, and nothing needs iret, which a KVM that emulates protected mode may lack.
 */
	.globl	_start, wait_for_interrupt, inb, inl, outb, outl, memcpy
	.section .multiboot, "a"
	.long	0x1BADB002, 0, -0x1BADB002
	.text
_start:	cld
	lgdt	gdt_pointer
	ljmp	$8, $1f
1:	mov	$16, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$stack + 16384, %esp
	mov	$idt, %edi
	mov	$vectors, %eax
2:	mov	%eax, (%edi)		/* an interrupt gate: offset, selector; offset, type */
	movw	$8, 2(%edi)
	mov	%eax, 4(%edi)
	movw	$0x8E00, 4(%edi)
	add	$8, %eax
	add	$8, %edi
	cmp	$idt + 256 * 8, %edi
	jb	2b
	lidt	idt_pointer
	call	main
wait_for_interrupt:
	sti				/* takes effect after the next instruction */
	hlt
	jmp	wait_for_interrupt
interrupted:
	pop	%eax			/* an address within the vector's entry */
	sub	$vectors, %eax
	shr	$3, %eax
	cmp	$32, %eax
	jb	1f
	add	$12, %esp		/* eip, cs, eflags */
	ret				/* from wait_for_interrupt() */
1:	push	%eax
	call	on_exception		/* with what lies below on the stack */
2:	hlt
	jmp	2b
	.balign	8
vectors:
	.rept	256
	call	interrupted
	.balign	8
	.endr

inb:	mov	4(%esp), %edx;	xor	%eax, %eax;	in	%dx, %al;	ret
inl:	mov	4(%esp), %edx;	in	%dx, %eax;	ret
outb:	mov	4(%esp), %edx;	mov	8(%esp), %eax;	out	%al, %dx;	ret
outl:	mov	4(%esp), %edx;	mov	8(%esp), %eax;	out	%eax, %dx;	ret
memcpy:	push	%esi
	push	%edi
	mov	12(%esp), %edi
	mov	16(%esp), %esi
	mov	20(%esp), %ecx
	rep	movsb
	pop	%edi
	pop	%esi
	mov	4(%esp), %eax
	ret

gdt:	.quad	0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF	/* flat code and data */
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
idt_pointer:
	.word	256 * 8 - 1
	.long	idt
	.lcomm	idt, 256 * 8
	.lcomm	stack, 16384
